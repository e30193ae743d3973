"""BEiT's block masks instead of random 75 %: at most 75 of 196 patches, blocks of 16 or more.

Other grids use the same fractions of the patches. BEiT calls this 40 %.
"""

_base_ = './baseline.py'

train_pipeline = _base_.train_pipeline
grid = train_pipeline[3]['grid_size']
train_pipeline[3] = dict(
    type='BlockMask',
    grid_size=grid,
    num_masked=round(75 / 196 * grid**2),
    min_block=round(16 / 196 * grid**2),
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
