"""Baseline of all ablations: random 75 % masks, tau 4, omega 0.2, soft targets.

MCBEIT_ABLATION=in1k (ViT-B, 300 epochs) or photos (a small ViT, any photo folder) selects the base.
"""

_base_ = '../_base_/ablations/{{$MCBEIT_ABLATION:in1k}}.py'
