import json
import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmpretrain.structures import DataSample

from mcbeit_mm.tokenizers.base import Tokenizer
from mcbeit_mm.tokenizers.training.metrics import ReconstructionMetric, psnr
from mcbeit_mm.visualization.targets import score_tokenizer

V, STRIDE = 11, 2


class Gray(Tokenizer):
    """Tokenizer whose code k is a gray patch of brightness k / (V - 1)."""

    vocab_size, stride = V, STRIDE

    def __init__(self):
        super().__init__()
        self.levels = torch.nn.Parameter(torch.linspace(0, 1, V))
        self.freeze()

    def encode(self, x):
        pooled = torch.nn.functional.avg_pool2d(self.denormalize(x).mean(1, True), STRIDE)
        return -(pooled - self.levels.view(1, -1, 1, 1)).abs()

    def decode_tokens(self, tokens):
        image = self.normalize(self.levels[tokens])
        image = image.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)
        return image.unsqueeze(1).expand(-1, 3, -1, -1)


def samples(count=5, size=32):
    images = torch.nn.functional.interpolate(torch.rand(count, 3, 8, 8), size, mode='bilinear')
    tokenizer = Gray()
    codes = tokenizer(images).argmax(dim=1)
    rows = []
    for original, back, ids in zip(images, tokenizer.decode(codes), codes, strict=True):
        sample = DataSample()
        sample.set_field(original, 'original')
        sample.set_field(back, 'reconstruction')
        sample.set_field(ids, 'codes')
        sample.set_field(V, 'vocab_size')
        rows.append(sample)
    return rows


def measure(rows, **kwargs):
    config = dict(type='ReconstructionMetric', **kwargs)
    evaluator = Evaluator(METRICS.build(config))
    for start in range(0, len(rows), 2):
        evaluator.process(data_samples=rows[start : start + 2])
    return evaluator.evaluate(len(rows))


def test_against_scikit_image_and_slow_counts():
    metrics = pytest.importorskip('skimage.metrics')
    rows = samples()
    psnr, ssim, seen = [], [], []
    for row in rows:
        a, b = (x.permute(1, 2, 0).double().numpy() for x in (row.original, row.reconstruction))
        psnr.append(metrics.peak_signal_noise_ratio(a, b, data_range=1))
        # torchmetrics pads by reflection, scikit-image symmetrically (repeating the edge pixel).
        _, full = metrics.structural_similarity(
            *(np.pad(x, ((5, 5), (5, 5), (0, 0)), mode='reflect') for x in (a, b)),
            data_range=1,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        ssim.append(full[5:-5, 5:-5].mean())
        seen += row.codes.flatten().tolist()
    result = measure(rows)
    assert list(result) == ['val/psnr', 'val/ssim', 'val/codebook_usage', 'val/perplexity']
    assert result['val/psnr'] == pytest.approx(np.mean(psnr), abs=1e-4)
    assert result['val/ssim'] == pytest.approx(np.mean(ssim), abs=1e-5)
    shares = [seen.count(k) / len(seen) for k in set(seen)]
    assert result['val/codebook_usage'] == len(shares) / V < 1
    perplexity = math.exp(-sum(p * math.log(p) for p in shares))
    assert result['val/perplexity'] == pytest.approx(perplexity, rel=1e-9)


def test_agrees_with_the_report():
    rows = samples()
    scores = score_tokenizer(Gray(), [torch.stack([row.original for row in rows])])
    result = measure(rows)
    assert result['val/psnr'] == pytest.approx(scores.psnr, abs=1e-4)
    assert result['val/codebook_usage'] == scores.share_used
    assert result['val/perplexity'] == pytest.approx(scores.perplexity, rel=1e-9)


def test_perfect_and_half_precision_images():
    (row,) = samples(1)
    row.reconstruction = row.original.clone()
    result = measure([row], prefix='test')
    assert result['test/psnr'] == 100
    assert result['test/ssim'] == pytest.approx(1)
    row.original, row.reconstruction = row.original.half(), row.reconstruction.half()
    assert measure([row])['val/psnr'] == 100


def _rank(rank, folder, rows):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    metric = ReconstructionMetric(collect_dir=str(folder / 'parts'))
    share = [rows[i % len(rows)].to_dict() for i in range(rank, len(rows) + 1, 2)]
    metric.process(None, share)
    (folder / f'{rank}.json').write_text(json.dumps(metric.evaluate(len(rows))))
    torch.distributed.destroy_process_group()


def test_two_processes_measure_the_same(tmp_path):
    rows = samples(5)  # one image is used twice, as by DefaultSampler
    mp.start_processes(_rank, (tmp_path, rows), nprocs=2, start_method='fork')
    expected = measure(rows)
    for rank in range(2):
        assert json.loads((tmp_path / f'{rank}.json').read_text()) == pytest.approx(expected)


def test_psnr_of_each_image():
    reference = torch.full((3, 3, 4, 5), 0.25)
    images = reference.clone()
    images[1] += 0.1  # MSE 0.01
    images[2, 0] += 0.1  # in one channel of three
    assert psnr(images, reference).tolist() == pytest.approx([100, 20, 20 + 10 * math.log10(3)])
