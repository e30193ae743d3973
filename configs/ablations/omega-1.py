"""Only the refined targets (weight 1 instead of 0.2)."""

_base_ = './baseline.py'

model = dict(head=dict(omega=1.0))
