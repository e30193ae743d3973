"""One step on random images for each kind of config, and what the report says of it."""

import re

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mcbeit_mm.config.dry_run import check_step, run_check
from mcbeit_mm.config.preflight import check_before_run
from mcbeit_mm.datasets.demo.layouts import make_demo_data

TOKENIZER = dict(
    type='GumbelVQGANTokenizer',
    ddconfig=dict(
        double_z=False, z_channels=8, resolution=64, in_channels=3, out_ch=3, ch=4, num_groups=4,
        ch_mult=[1, 1, 1, 1], num_res_blocks=1, attn_resolutions=[], dropout=0.0,
    ),
    n_embed=256,
    embed_dim=8,
)  # fmt: skip
TASKS = {
    'mcbeit_vit-micro-p16_demo': ('classification', 'MCBEiT'),
    'mcbeit_vit-micro-p16_classification_demo': ('classification', 'ImageClassifier'),
    'mcbeit_vit-micro-p16_segmentation_demo': ('segmentation', 'EncoderDecoder'),
    'mcbeit_vit-micro-p16_detection_demo': ('detection', 'MaskRCNN'),
    'tokenizer_gumbel-f8-256_demo': ('classification', 'GumbelVQGANTrainer'),
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('demo') / 'data'
    make_demo_data(out, train=100, val=10)
    return out


def config(name, data, monkeypatch, tmp_path):
    monkeypatch.setenv('MCBEIT_DATA', str(data / TASKS[name][0]))
    cfg = Config.fromfile(ROOT / f'configs/demo/{name}.py')
    cfg.work_dir, cfg.launcher = str(tmp_path / 'work'), 'none'
    if 'target_generator' in cfg.model:
        cfg.model.target_generator = TOKENIZER
    elif 'backbone' in cfg.model:
        cfg.model.backbone.init_cfg = None
    return cfg


@pytest.fixture
def classifier(data, monkeypatch, tmp_path):
    return config('mcbeit_vit-micro-p16_classification_demo', data, monkeypatch, tmp_path)


@pytest.mark.parametrize('name', TASKS)
def test_every_task_is_reported(name, data, monkeypatch, tmp_path, capsys):
    cfg = config(name, data, monkeypatch, tmp_path)
    before = cfg.to_dict()
    check_before_run(cfg)
    run_check(cfg)
    report = dict(re.findall(r'^(\w+) {2,}(.*)$', capsys.readouterr().out, re.M))
    assert list(report) == 'task data length batch model groups step memory disk'.split()
    assert report['task'] == f'{TASKS[name][1]} in {cfg.default_scope}'
    assert report['data'].startswith('100 images of ')
    assert report['step'].startswith('loss ') and 'no gradient' not in report['step']
    assert not (tmp_path / 'work').exists(), 'a check leaves nothing behind'
    assert cfg.to_dict() == before


def test_numbers_of_the_report(classifier):
    classifier.optim_wrapper.accumulative_counts = 2
    init_default_scope(classifier.default_scope)
    model = MODELS.build(classifier.model)
    decayed = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    flat = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    tokens = sum(
        p.numel() for n, p in model.named_parameters() if n.endswith(('_token', 'pos_embed'))
    )
    report = check_step(classifier)
    assert f'{(decayed - tokens) / 1e6:.2f} M with decay 0.05' in report
    assert f'{(flat + tokens) / 1e6:.2f} M with decay 0' in report
    iterations = 100 // 16 if classifier.train_dataloader.get('drop_last') else 7
    assert f'6 epochs x {iterations} iterations' in report
    assert '16 images x 1 processes x 2 accumulated = 32' in report


@pytest.mark.skipif(torch.cuda.is_available(), reason='fp16 works on this machine')
def test_fp16_is_tried_in_bf16_without_a_gpu(classifier):
    assert 'in bf16' not in check_step(classifier)
    classifier.optim_wrapper.type = 'AmpOptimWrapper'
    assert 'in bf16, since fp16 needs a GPU' in check_step(classifier)
    assert classifier.optim_wrapper.type == 'AmpOptimWrapper'


@MODELS.register_module(force=True)
class BadGradient(torch.nn.Linear):
    """A classifier's neck whose weights get an infinite gradient, and an idle parameter."""

    def __init__(self, infinite: bool):
        super().__init__(128, 128)
        self.infinite, self.idle = infinite, torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs):
        x = super().forward(inputs[-1])
        if self.infinite:  # sqrt has an infinite slope at 0
            x = x + (self.weight * 0).sum().sqrt()
        return (x,)


def test_gradients_are_checked_by_name(classifier):
    classifier.model.neck = dict(type='BadGradient', infinite=False)
    assert 'no gradient reaches 1 parameters: neck.idle' in check_step(classifier)
    classifier.model.neck.infinite = True
    with pytest.raises(ValueError, match='gradients are not finite: .*neck.weight'):
        check_step(classifier)


def test_a_batch_larger_than_the_data(classifier):
    classifier.train_dataloader.update(batch_size=101, drop_last=True)
    with pytest.raises(ValueError, match='100 images do not fill one iteration of 101'):
        check_step(classifier)
