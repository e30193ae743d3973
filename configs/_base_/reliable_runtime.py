"""Hooks of docs/reliability.md for any MMEngine config, with a Resumable*Loop in train_cfg."""

custom_imports = dict(imports=['mcbeit_mm'], allow_failed_imports=False)

default_hooks = dict(
    checkpoint=dict(type='SafeCheckpointHook'),
    numerics=dict(type='NumericsHook'),
    bad_samples=dict(type='BadSamplesHook'),
    interrupt=dict(type='InterruptHook'),
)
