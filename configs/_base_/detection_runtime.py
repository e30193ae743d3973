"""The transfer runtime in mmdet's scope, with pictures of the predictions.

Pictures: tools/test.py CONFIG CHECKPOINT --cfg-options default_hooks.visualization.draw=True
default_hooks.visualization.test_out_dir=predictions
"""

_base_ = './transfer_runtime.py'

custom_imports = dict(imports=['mcbeit_mm', 'mcbeit_mm.detection_precision'])
default_scope = 'mmdet'
default_hooks = dict(visualization=dict(type='DetVisualizationHook', interval=1, score_thr=0.3))
visualizer = dict(type='DetLocalVisualizer', name='visualizer')
