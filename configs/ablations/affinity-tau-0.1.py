"""Affinity softmax at temperature 0.1 instead of 1: nearer patches weigh more."""

_base_ = './baseline.py'

model = dict(head=dict(tau_affinity=0.1))
