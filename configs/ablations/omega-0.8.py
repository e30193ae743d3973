"""Weight of the refined targets 0.8 instead of 0.2."""

_base_ = './baseline.py'

model = dict(head=dict(omega=0.8))
