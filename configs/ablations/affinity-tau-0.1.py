"""Affinity softmax with temperature 0.1 instead of 1, which favors similar patches."""

_base_ = './baseline.py'

model = dict(head=dict(tau_affinity=0.1))
