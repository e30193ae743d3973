"""The memory estimate against sums by hand."""

import pytest
import torch
from conftest import ROOT
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mcbeit_mm.config import memory
from mcbeit_mm.config.memory import _kept_bytes, estimate_memory
from mcbeit_mm.config.synthetic import training_batch

ARCH = dict(embed_dims=32, num_layers=4, num_heads=4, feedforward_channels=64)
BACKBONE = dict(type='MCBEiTViT', arch=ARCH, img_size=64, patch_size=16)


def classifier(**kwargs):
    init_default_scope('mmpretrain')
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(BACKBONE, out_type='avg_featmap', rel_pos='per_block', **kwargs),
            head=dict(type='LinearClsHead', num_classes=5, in_channels=32),
        )
    )


class TwoLinears(nn.Module):
    """Keeps its input (also the only use of it), and the hidden layer once: ReLU is in place."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Identity()
        self.head = nn.Linear(8, 16)
        self.head.num_classes = 5
        self.last = nn.Linear(16, 4)

    def forward(self, inputs, data_samples, mode):
        return self.last(self.head(inputs).relu_()).sum()


def test_saved_tensors_by_hand():
    model = TwoLinears()
    # images (B, 3, 4, 8): the input itself and the activated hidden layer (B, 3, 4, 16), fp32
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for batch in (1, 2):
        images = torch.rand(batch, 3, 4, 8)
        kept = _kept_bytes(lambda x=images: model(x, None, 'loss'), own, half=False)
        assert kept == 4 * batch * 3 * 4 * (8 + 16)


def test_states_by_hand():
    model = classifier()
    memory = estimate_memory(model, (64, 64))
    values = sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert memory.weights == 4 * values + buffers
    assert memory.gradients == 4 * values
    assert memory.moments == 8 * values
    assert memory.total(3) == memory.total(1) + 2 * memory.per_image


def test_frozen_weights_need_no_gradients():
    model = classifier()
    model.backbone.requires_grad_(False)
    memory = estimate_memory(model, (64, 64))
    assert memory.gradients == 4 * sum(p.numel() for p in model.head.parameters())


def test_checkpointing_and_half_precision_keep_less():
    plain = estimate_memory(classifier(), (64, 64)).per_image
    checkpointed = estimate_memory(classifier(with_cp=True), (64, 64)).per_image
    inputs_of_blocks = 4 * (1 + 16) * 32 * 4  # 4 blocks, 17 tokens, 32 dims, fp32
    assert inputs_of_blocks < checkpointed < 0.6 * plain  # of four blocks, one is there at a time
    full = estimate_memory(classifier(), (64, 64), half=False).per_image
    assert plain < 0.75 * full


def test_attention_keeps_no_matrix_of_all_pairs():
    """Four times the tokens cost about four times the memory, not sixteen."""
    small, large = (estimate_memory(classifier(), (side, side)) for side in (64, 128))
    assert large.per_image < 4.5 * small.per_image
    pairs = (1 + 64) ** 2 - (1 + 16) ** 2  # the position bias does: 4 blocks, 4 heads, bf16
    assert large.fixed - small.fixed > 4 * 4 * 2 * pairs


def test_attention_is_restored():
    original = nn.functional.scaled_dot_product_attention
    estimate_memory(classifier(), (32, 32))
    assert nn.functional.scaled_dot_product_attention is original


def test_random_products_keep_what_real_ones_keep(monkeypatch):
    sizes = [estimate_memory(classifier(), (64, 64), half) for half in (True, False)]
    monkeypatch.setattr(memory, 'PRODUCTS', set())
    assert sizes == [estimate_memory(classifier(), (64, 64), half) for half in (True, False)]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_random_products(dtype):
    nan = torch.full((2, 4, 6, 6), torch.nan, dtype=dtype)
    weight, matrix = torch.zeros(8, 4, 3, 3, dtype=dtype), nan.flatten(2)
    with memory._RandomProducts():
        found = nn.functional.conv2d(nan, weight, stride=2, padding=1)
        product, own = matrix.mT @ matrix, torch.zeros(4, 4, dtype=dtype)
        own.addmm_(matrix[0], matrix[1].T)
        assert (matrix[0] + 1).isnan().all()  # all else is computed
    assert found.shape == (2, 8, 3, 3) and product.shape == (2, 36, 36)
    for x in (found, product):
        assert x.dtype == dtype and x.isfinite().all() and 0.7 < x.float().std() < 1.3
    assert not own.any()


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match='no synthetic batch for a Linear'):
        training_batch(nn.Linear(2, 2), 1, (8, 8))


def test_segmentor_runs_on_its_batch():
    init_default_scope('mmseg')
    model = MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=dict(BACKBONE, out_type='featmap', final_norm=False),
            decode_head=dict(
                type='FCNHead', in_channels=32, channels=8, num_classes=7, num_convs=1, in_index=-1
            ),
        )
    )
    losses = model(**training_batch(model, 2, (64, 64)), mode='loss')
    assert torch.isfinite(losses['decode.loss_ce'])
    assert estimate_memory(model, (64, 64)).per_image > 0


def test_table_of_estimates(capsys):
    config = str(ROOT / 'configs/demo/mcbeit_vit-micro-p16_classification_demo.py')
    memory.print_estimates([config], batch=4, cfg_options=['model.backbone.arch.num_layers=1'])
    memory.print_estimates([config], size=(128, 160), cfg_options=['model.backbone.with_cp=True'])
    table = [line.split() for line in capsys.readouterr().out.splitlines() if config in line]
    weights, gradients, moments, fixed, per_image = map(float, table[0][1:6])
    assert weights == gradients and moments == pytest.approx(2 * weights, abs=2e-3)
    assert table[0][6] == '4' and table[1][6] == '16'
    total = weights + gradients + moments + fixed + 4 * per_image
    assert float(table[0][0]) == pytest.approx(total, abs=0.06)
