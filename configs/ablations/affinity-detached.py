"""No gradient through the affinity; the authors let it flow."""

_base_ = './baseline.py'

model = dict(head=dict(detach_affinity=True))
