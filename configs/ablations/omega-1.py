"""Refined targets alone."""

_base_ = './baseline.py'

model = dict(head=dict(omega=1.0))
