"""Tokenizer softmax with temperature 1 instead of 4."""

_base_ = './baseline.py'

model = dict(head=dict(tau=1.0))
