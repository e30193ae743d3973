"""Small ablations that can be planned, and made to look finished without training."""

import json

from mcbeit_mm.ablation import plan

BASE = """
model = dict(
    type='MCBEiT',
    head=dict(type='MCBEiTHead', omega=0.2, vocab_size=None),
    target_generator=dict(type='GumbelVQGANTokenizer', checkpoint='{folder}/tokenizer'),
)
train_dataloader = dict(
    num_workers=4,
    dataset=dict(type='CustomDataset', data_root='{folder}/data', data_prefix=''),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
randomness = dict(seed=0)
work_dir = 'x'
"""


def write_configs(folder):
    """Write a baseline and two deltas, a data folder and a tokenizer."""
    (folder / 'data').mkdir()
    (folder / 'tokenizer').mkdir()
    (folder / 'tokenizer/last.ckpt').write_bytes(b'weights')
    (folder / 'baseline.py').write_text(BASE.format(folder=folder))
    for omega in (0, 1):
        text = f"_base_ = './baseline.py'\nmodel = dict(head=dict(omega={omega}.0))\n"
        (folder / f'omega-{omega}.py').write_text(text)
    return folder


def planned(folder, *options, seeds=(0, 1), pattern='*.py', **kwargs):
    configs = plan.find_configs([str(folder / pattern)])
    return plan.plan(configs, seeds, folder / 'out', options, **kwargs)


def finish(run, knn=30.0, linear=40.0, epoch=3, block=1):
    """Write the files of a finished run, without its weights."""
    (run.folder / 'log/vis_data').mkdir(parents=True, exist_ok=True)
    run.cfg.dump(run.folder / run.config.name)
    (run.folder / 'last_checkpoint').write_text(f'/elsewhere/epoch_{epoch}.pth')
    logged = [dict(step=step, lr=0.1, kl=3 - step / 10, target_entropy=4.0) for step in (1, 2)]
    text = ''.join(json.dumps(entry) + '\n' for entry in logged)
    (run.folder / 'log/vis_data/scalars.json').write_text(text)
    blocks = {str(i): dict(knn=knn - i + block, linear=linear - i + block) for i in range(3)}
    scores = dict(chosen=dict(knn=block, linear=block), blocks=blocks)
    result = dict(data=dict(train=50, val=20, classes=2), models=dict(checkpoint=scores))
    (run.folder / 'features.json').write_text(json.dumps(result))
