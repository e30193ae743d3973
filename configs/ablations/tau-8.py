"""Tokenizer softmax with temperature 8 instead of 4."""

_base_ = './baseline.py'

model = dict(head=dict(tau=8.0))
