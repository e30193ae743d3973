"""BEiT's targets: the tokenizer's best code only, no refinement."""

_base_ = './baseline.py'

model = dict(head=dict(tau=0.0, omega=0.0))
