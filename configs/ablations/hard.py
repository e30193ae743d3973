"""BEiT's targets: only the tokenizer's best code, no refinement."""

_base_ = './baseline.py'

model = dict(head=dict(tau=0.0, omega=0.0))
