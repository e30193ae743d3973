"""Targets from BEiT v2's VQ-KD; MCBEIT_TOKENIZER is its checkpoint file.

Its stride is 16, so its view is larger; its logits are cosines, so tau is small.
"""

_base_ = './baseline.py'

model = dict(
    head=dict(vocab_size=None, tau=0.07),  # our choice: soft, but far from uniform
    target_generator=dict(
        type='VQKDTokenizer', checkpoint='{{$MCBEIT_TOKENIZER:weights/vqkd_encoder.pth}}'
    ),
)
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(second_size=16 * train_pipeline[3]['grid_size'])
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
