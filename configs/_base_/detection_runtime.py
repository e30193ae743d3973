"""Runtime of detection; tools/test.py ... --show-dir DIR draws predictions."""

_base_ = './transfer_runtime.py'

custom_imports = dict(imports=['mcbeit_mm', 'mcbeit_mm.layers.detection_precision'])
default_scope = 'mmdet'
default_hooks = dict(visualization=dict(type='DetVisualizationHook', interval=1, score_thr=0.3))
visualizer = dict(type='DetLocalVisualizer')
