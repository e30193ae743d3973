"""One step on random images for each kind of config, and the report on it."""

import pytest
import torch
from config_files import load
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
    make_demo_data(out, train=20, val=10)
    return out


def config(name, data, tmp_path):
    cfg = load(f'demo/{name}.py', MCBEIT_DATA=str(data / TASKS[name][0]))
    cfg.work_dir, cfg.launcher = str(tmp_path / 'work'), 'none'
    cfg.train_dataloader.batch_size = min(cfg.train_dataloader.batch_size, 16)
    if 'target_generator' in cfg.model:
        cfg.model.target_generator = TOKENIZER
    elif 'backbone' in cfg.model:
        cfg.model.backbone.init_cfg = None
    return cfg


@pytest.fixture
def classifier(data, tmp_path):
    cfg = config('mcbeit_vit-micro-p16_classification_demo', data, tmp_path)
    cfg.model.backbone.update(arch=dict(cfg.model.backbone.arch, num_layers=1))
    return cfg


@pytest.mark.parametrize('name', TASKS)
def test_every_task_is_reported(name, data, tmp_path, capsys):
    cfg = config(name, data, tmp_path)
    before = cfg.to_dict()
    check_before_run(cfg)
    run_check(cfg)
    *lines, last = capsys.readouterr().out.splitlines()[-6:]
    report = dict(line.split(maxsplit=1) for line in lines)
    assert list(report) == 'model data step memory disk'.split()
    assert report['model'].startswith(f'{TASKS[name][1]}, ')
    assert report['data'].startswith('20 images in ')
    assert report['step'].startswith('loss ') and 'no gradient' not in report['step']
    assert last == 'Check passed. Rerun without --check to train.'
    assert not (tmp_path / 'work').exists(), 'a check leaves nothing behind'
    assert cfg.to_dict() == before


def test_numbers_of_the_report(classifier):
    classifier.optim_wrapper.accumulative_counts = 2
    init_default_scope(classifier.default_scope)
    size = sum(p.numel() for p in MODELS.build(classifier.model).parameters())
    report = check_step(classifier)
    assert f'{size / 1e6:.1f} M parameters, {size / 1e6:.1f} M trained' in report['model']
    iterations = 20 // 16 if classifier.train_dataloader.get('drop_last') else 2
    expected = f'6 epochs of {iterations} iterations, 32 images per optimizer step'
    assert report['data'].endswith(expected)
    assert 'for 16 images' in report['memory']


@pytest.mark.skipif(torch.cuda.is_available(), reason='fp16 works on this machine')
def test_fp16_is_tried_in_bf16_without_a_gpu(classifier):
    classifier.optim_wrapper.type = 'AmpOptimWrapper'
    assert 'in bf16 because fp16 needs a GPU' in check_step(classifier)['step']
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
    assert 'no gradient reaches 1 parameters (neck.idle)' in check_step(classifier)['step']
    classifier.model.neck.infinite = True
    with pytest.raises(ValueError, match='gradients are not finite: .*neck.weight'):
        check_step(classifier)


def test_a_batch_larger_than_the_data(classifier):
    classifier.train_dataloader.update(batch_size=21, drop_last=True)
    with pytest.raises(ValueError, match='20 images do not fill one iteration of 21'):
        check_step(classifier)


def test_arguments_that_a_class_refuses_keep_its_own_error(classifier):
    """`launch.one_line_errors` prints it."""
    classifier.optim_wrapper.optimizer.learning_rate = 1
    check_before_run(classifier)
    with pytest.raises(TypeError, match="unexpected keyword argument 'learning_rate'"):
        check_step(classifier)
