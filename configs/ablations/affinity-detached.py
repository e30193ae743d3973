"""No gradient through the affinity; the authors' code has one."""

_base_ = './baseline.py'

model = dict(head=dict(detach_affinity=True))
