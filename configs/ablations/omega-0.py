"""No refinement: the targets are the tokenizer's probabilities."""

_base_ = './baseline.py'

model = dict(head=dict(omega=0.0))
