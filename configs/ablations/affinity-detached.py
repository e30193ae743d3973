"""No gradient through the affinity; the authors have one."""

_base_ = './baseline.py'

model = dict(head=dict(detach_affinity=True))
