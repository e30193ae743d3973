"""Tokenizer softmax with temperature 2 instead of 4."""

_base_ = './baseline.py'

model = dict(head=dict(tau=2.0))
