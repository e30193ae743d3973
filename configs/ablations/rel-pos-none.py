"""Absolute position embeddings only, without the shared relative position bias."""

_base_ = './baseline.py'

model = dict(backbone=dict(rel_pos='none', abs_pos=True))
