"""Twice the epochs."""

_base_ = './baseline.py'

max_epochs = 2 * _base_.train_cfg.max_epochs

train_cfg = dict(max_epochs=max_epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=max_epochs)
