"""Runtime of segmentation, in iterations.

tools/test.py ... --show-dir DIR draws ground truth | prediction over each test photo.
"""

_base_ = './transfer_runtime.py'

default_scope = 'mmseg'
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=16000),  # as in the authors' code
    visualization=dict(type='SegVisualizationHook', draw=False),
)
log_processor = dict(by_epoch=False)
visualizer = dict(type='SegLocalVisualizer', alpha=0.6)
