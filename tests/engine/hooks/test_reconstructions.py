import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch.utils.data import DataLoader

from mcbeit_mm.engine.hooks.reconstructions import GAP, MIN_SIDE, ReconstructionHook, picture


class Halver(BaseModel):
    """Reconstructs every image at half its brightness."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, mode='tensor'):
        if mode == 'loss':
            return dict(loss=self.weight.square().sum())
        samples = []
        for image in inputs:
            sample = DataSample()
            sample.set_field(image, 'original')
            sample.set_field(image * 0.5, 'reconstruction')
            samples.append(sample)
        return samples


class Nothing(BaseMetric):
    default_prefix = 'val'

    def process(self, data_batch, data_samples):
        self.results += [0] * len(data_samples)

    def compute_metrics(self, results):
        return dict(count=len(results))


def loader(images, batch_size):
    rows = [dict(inputs=image) for image in images]
    return DataLoader(rows, batch_size, sampler=DefaultSampler(rows, shuffle=False))


def run(work_dir, images, hook, interval=2):
    runner = Runner(
        Halver(),
        str(work_dir),
        train_dataloader=loader(images, 1),
        val_dataloader=loader(images, 3),
        train_cfg=dict(by_epoch=False, max_iters=4, val_interval=interval),
        val_cfg=dict(),
        val_evaluator=Evaluator(Nothing()),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[hook],
        log_level='ERROR',
        experiment_name=f'{work_dir.name}-reconstructions',
    )
    runner.train()
    return sorted(work_dir.glob('*/vis_data/vis_image/*'))


def test_one_picture_per_validation_in_the_work_dir(tmp_path):
    images = torch.rand(8, 3, 32, 48)
    files = run(tmp_path, images, ReconstructionHook(num_images=5))
    assert [file.name for file in files] == ['reconstructions_2.png', 'reconstructions_4.png']
    shown = cv2.cvtColor(cv2.imread(str(files[0])), cv2.COLOR_BGR2RGB)
    factor, height, width = MIN_SIDE // 32, MIN_SIDE, 48 * MIN_SIDE // 32
    assert shown.shape == (2 * height + GAP, 5 * width + 4 * GAP, 3)
    for row, brightness in enumerate((1, 0.5)):
        for i, image in enumerate(images[:5]):
            top, left = row * (height + GAP), i * (width + GAP)
            tile = shown[top : top + height : factor, left : left + width : factor]
            expected = (image * brightness * 255).permute(1, 2, 0).numpy()
            assert np.abs(tile - expected).max() <= 0.501
    assert (shown[height : height + GAP] == 255).all()
    assert (shown[:, width : width + GAP] == 255).all()


def test_fewer_images_than_asked_for(tmp_path):
    (file,) = run(tmp_path, torch.rand(2, 3, 160, 160), ReconstructionHook(), interval=4)
    assert cv2.imread(str(file)).shape == (2 * 160 + GAP, 2 * 160 + GAP, 3)


def test_only_the_main_process_draws(monkeypatch):
    monkeypatch.setattr('mcbeit_mm.engine.hooks.reconstructions.is_main_process', lambda: False)
    hook = ReconstructionHook()
    hook.before_val_epoch(None)
    hook.after_val_iter(None, 0, None, Halver()(torch.rand(2, 3, 8, 8)))
    hook.after_val_epoch(None)  # without a runner, drawing would fail


def test_enlarged_by_an_integer_factor():
    shown = picture(torch.zeros(1, 3, 50, 60), torch.ones(1, 3, 50, 60))
    assert shown.dtype == np.uint8 and shown.shape == (2 * 150 + GAP, 180, 3)


def test_number_of_images():
    with pytest.raises(ValueError, match='num_images >= 1, got 0'):
        ReconstructionHook(num_images=0)
