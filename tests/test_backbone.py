"""The backbone against the authors' arrays, timm, and itself."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import backbone_from, relative_error
from mmengine.hooks import EMAHook
from torch import nn

from mcbeit_mm.backbone import MCBEiTViT
from mcbeit_mm.head import MCBEiTHead
from mcbeit_mm.layers.blocks import allow_recompiles
from mcbeit_mm.layers.rel_pos import table_to_bias

TINY = dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64)


def tiny(**kwargs) -> MCBEiTViT:
    model = MCBEiTViT(TINY, **(dict(img_size=64, layer_scale_init_value=0.5) | kwargs))
    for name, param in model.named_parameters():  # zero tables would hide errors
        if 'table' in name:
            nn.init.normal_(param)
    return model.eval()


@pytest.fixture
def pretrain(golden):
    g = golden('pretrain')
    model = backbone_from(g.sizes).eval()
    state = {k: v for k, v in g.group('state').items() if not k.startswith('lm_head.')}
    model.load_state_dict(state)
    return model, g


def test_golden_features(pretrain):
    model, g = pretrain
    out = model(g['image'], g['mask'])
    assert len(out) == 1
    assert relative_error(out[0], g['encoded']) < 1e-5
    logits = nn.functional.linear(out[0][:, 1:], g['state/lm_head.weight'], g['state/lm_head.bias'])
    assert relative_error(logits, g['logits']) < 1e-5


@pytest.mark.parametrize('variant', ['', '_strong'])
@pytest.mark.parametrize('detached', [False, True])
@pytest.mark.parametrize('fused', [True, False])
def test_golden_gradients_of_every_parameter(pretrain, golden, variant, detached, fused):
    model, g = pretrain
    grads = golden(f'pretrain_grads{variant}{"_w_detached" if detached else ""}')
    head = MCBEiTHead(g.sizes['embed_dim'], g.sizes['vocab_size'], fused=fused)
    head.multi_choice.tau, head.multi_choice.omega = float(grads['temp']), float(grads['omega'])
    head.multi_choice.detach_affinity = detached
    lm_head = {k.removeprefix('lm_head.'): v for k, v in g.group('state').items() if 'lm_head' in k}
    head.lm_head.load_state_dict(lm_head)
    terms = head.loss(model(g['image'], g['mask'])[-1][:, 1:], g['d_logits'], g['mask'])
    terms['loss'].backward()
    assert float(terms['loss'].detach()) == pytest.approx(float(grads['loss']), rel=1e-6)
    expected = grads.group('grad_w_detached' if detached else 'grad')
    params = dict(model.named_parameters()) | dict(head.named_parameters())
    assert params.keys() == expected.keys()
    for name, param in params.items():
        error = (param.grad - expected[name]).norm() / expected[name].norm()
        assert error < 1e-4, name


def test_parameter_names_are_the_official_ones(pretrain):
    model, g = pretrain
    official = {k for k in g.group('state') if not k.startswith('lm_head.')}
    assert set(model.state_dict()) == {k for k in official if 'relative_position_index' not in k}


@pytest.mark.parametrize(
    'arch, dims, count',
    [('small', 384, 24_753_320), ('base', 768, 91_965_776), ('large', 1024, 311_534_016)],
)
def test_parameter_counts_with_lm_head(arch, dims, count):
    with torch.device('meta'):  # counting needs no values
        model, head = MCBEiTViT(arch), MCBEiTHead(dims)
    params = [*model.parameters(), *head.parameters()]
    assert sum(p.numel() for p in params) == count


def test_initialization_is_truncated_at_one_sigma_and_rescaled_by_depth():
    model = MCBEiTViT(dict(embed_dims=128, num_layers=4, num_heads=4, feedforward_channels=512))
    for depth, block in enumerate(model.blocks, start=1):
        for weight, scale in [
            (block.attn.qkv.weight, 1),
            (block.mlp.fc1.weight, 1),
            (block.attn.proj.weight, (2 * depth) ** 0.5),
            (block.mlp.fc2.weight, (2 * depth) ** 0.5),
        ]:
            assert weight.abs().max() <= 0.02 / scale + 1e-8
            # Truncation at one sigma leaves 0.5396 of the standard deviation.
            assert float(weight.std()) == pytest.approx(0.02 * 0.5396 / scale, rel=0.03)
        assert block.attn.q_bias.abs().max() == 0 and block.mlp.fc1.bias.abs().max() == 0
        assert torch.equal(block.gamma_1, torch.full((128,), 0.1))
    assert model.rel_pos_bias.relative_position_bias_table.abs().max() == 0
    assert float(model.patch_embed.proj.weight.abs().max()) <= 0.02


def test_fine_tuning_model_is_not_truncated_at_one_sigma():
    model = MCBEiTViT(TINY, img_size=64, rel_pos='per_block', out_type='avg_featmap')
    assert float(model.blocks[0].attn.qkv.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert model.mask_token is None and isinstance(model.norm, nn.Identity)


def test_equals_timm_with_per_block_tables():
    from timm.models.beit import Beit

    model = tiny(rel_pos='per_block', out_type='avg_featmap')
    nn.init.normal_(model.fc_norm.weight)
    reference = Beit(
        img_size=64, embed_dim=32, depth=3, num_heads=4, mlp_ratio=2, num_classes=0,
        use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.5,
        norm_layer=lambda d, **kw: nn.LayerNorm(d, eps=1e-6),
    ).eval()  # fmt: skip
    reference.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert relative_error(model(x)[0], reference(x)) < 1e-5


@pytest.mark.parametrize('rel_pos', ['shared', 'per_block'])
def test_inference_caches_position_biases_and_never_stale_ones(rel_pos, monkeypatch):
    model = tiny(rel_pos=rel_pos).eval()
    tables = [p for name, p in model.named_parameters() if name.endswith('bias_table')]
    looked_up = []
    monkeypatch.setattr(
        'mcbeit_mm.layers.rel_pos.table_to_bias',
        lambda *args: looked_up.append(1) or table_to_bias(*args),
    )
    images = torch.randn(1, 3, 64, 64)

    def fresh():
        """Features of a copy without cached biases."""
        copied = copy.deepcopy(model).eval()
        with torch.no_grad():
            return copied(images)[0]

    @torch.no_grad()
    def found():
        looked_up.clear()
        return model(images)[0], len(looked_up)

    assert found()[1] == len(tables) and found()[1] == 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    changes = (
        lambda: (model(images)[0].square().sum().backward(), optimizer.step()),  # in eval mode
        lambda: [table.data.normal_() for table in tables] and model.eval(),
        lambda: [table.data.normal_() for table in tables] and model.train().eval(),
        lambda: model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}),
    )
    for change in changes:
        before, _ = found()
        change()
        after, count = found()
        assert torch.equal(after, fresh()) and not torch.equal(after, before)
        assert count == len(tables) and found()[1] == 0


def test_averaged_weights_are_validated_with_their_own_positions():
    """EMAHook swaps weights through `.data`, which does not change their version."""
    model = tiny()
    runner = SimpleNamespace(model=model)
    hook = EMAHook()
    hook.before_run(runner)
    averaged = hook.ema_model.module
    nn.init.normal_(averaged.rel_pos_bias.relative_position_bias_table)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        own, other = model.eval()(images)[0], averaged.eval()(images)[0]
        hook.before_val_epoch(runner)
        model.eval()  # as MMEngine's loops do here
        assert torch.equal(model(images)[0], other) and not torch.equal(own, other)
        hook.after_val_epoch(runner)
        assert torch.equal(model.train().eval()(images)[0], own)


@pytest.mark.parametrize('rel_pos', ['shared', 'per_block', 'none'])
@pytest.mark.parametrize(
    'size, abs_pos', [((64, 64), True), ((32, 96), False), ((112, 80), True), ((112, 80), False)]
)
def test_any_multiple_of_the_patch_works(rel_pos, abs_pos, size):
    model = tiny(rel_pos=rel_pos, abs_pos=abs_pos, out_type='featmap')
    out = model(torch.randn(2, 3, *size))[0]
    assert out.shape == (2, 32, size[0] // 16, size[1] // 16)
    assert out.isfinite().all()


def test_non_square_model_and_mask_grid():
    model = tiny(img_size=(32, 64))
    mask = torch.zeros(1, 2, 4, dtype=torch.bool)
    mask[0, 1, 2] = True
    x = torch.randn(1, 3, 32, 64)
    hidden = x.clone()
    hidden[..., 16:32, 32:48] = 7.0  # pixels of a masked patch must not matter
    assert torch.equal(model(x, mask)[0], model(hidden, mask)[0])
    assert not torch.equal(model(x)[0], model(hidden)[0])


def test_out_types_and_indices_agree():
    raw, featmap, cls, avg = (
        tiny(out_type=t, out_indices=(0, -1), abs_pos=False)
        for t in ('raw', 'featmap', 'cls_token', 'avg_featmap')
    )
    for other in (featmap, cls, avg):
        other.load_state_dict(raw.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 64)
    tokens = raw(x)
    assert len(tokens) == 2
    for a, b, c in zip(tokens, featmap(x), cls(x), strict=True):
        assert torch.equal(a[:, 1:].transpose(1, 2).reshape(2, 32, 4, 4), b)
        assert torch.equal(a[:, 0], c)
    first = tokens[0][:, 1:].mean(1)
    torch.testing.assert_close(avg(x)[0], nn.functional.layer_norm(first, (32,), eps=1e-6))


def test_final_norm_can_be_left_out():
    normed, plain = tiny(), tiny(final_norm=False)
    plain.load_state_dict(normed.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(normed.norm(plain(x)[0]), normed(x)[0])


def test_activation_checkpointing_changes_no_gradient():
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = tiny(with_cp=with_cp, drop_path_rate=0.3).train()
        torch.manual_seed(1)
        x, mask = torch.randn(4, 3, 64, 64), torch.rand(4, 16) < 0.5
        model(x, mask)[0].square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_every_parameter_gets_a_gradient():
    model = tiny(abs_pos=True)
    model(torch.randn(2, 3, 64, 64), torch.rand(2, 16) < 0.5)[0].square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: tiny()(torch.randn(1, 3, 60, 64)), 'not a multiple of the 16-pixel patch'),
        (lambda: tiny()(torch.randn(1, 3, 64, 64), torch.ones(1, 9)), 'does not fit'),
        (lambda: tiny(out_type='featmap')(torch.randn(1, 3, 64, 64), torch.ones(1, 16)), 'raw'),
        (lambda: MCBEiTViT('huge'), "'huge', expected one of"),
        (lambda: MCBEiTViT(dict(embed_dims=32)), 'lacks'),
        (lambda: tiny(rel_pos='yes'), 'rel_pos'),
        (lambda: tiny(out_type='tokens'), 'out_type'),
        (lambda: tiny(out_indices=(0, 3)), 'out of range for 3 blocks'),
        (lambda: tiny(img_size=60), 'not a multiple'),
    ],
)
def test_errors_say_what_was_got(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_cuda_autocast_is_close_to_fp32(dtype):
    model = tiny().cuda()
    x, mask = torch.randn(2, 3, 64, 64).cuda(), torch.rand(2, 16).cuda() < 0.5
    exact = model(x, mask)[0]
    with torch.autocast('cuda', dtype=dtype):
        assert relative_error(model(x, mask)[0].float(), exact) < 3e-2


@pytest.mark.parametrize('bias_shape', [(1, 4, 7, 7), None])
def test_attention_with_gradients_equals_the_fused_one(bias_shape):
    block = tiny().blocks[0].double()
    x = torch.randn(2, 7, 32, dtype=torch.double, requires_grad=True)
    bias = None
    if bias_shape:
        bias = torch.randn(bias_shape, dtype=torch.double, requires_grad=True)
    inputs = (x, bias) if bias_shape else (x,)
    out = block.attn(x, bias)
    grads = torch.autograd.grad(out.square().sum(), inputs)
    qkv = nn.functional.linear(x, block.attn.qkv.weight)  # biases are initialized to zero
    q, k, v = qkv.reshape(2, 7, 3, 4, 8).permute(2, 0, 3, 1, 4)
    y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    expected = block.attn.proj(y.transpose(1, 2).reshape(2, 7, 32))
    expected_grads = torch.autograd.grad(expected.square().sum(), inputs)
    assert relative_error(out, expected) < 1e-12
    for got, wanted in zip(grads, expected_grads, strict=True):
        assert relative_error(got, wanted) < 1e-12


def test_compiled_blocks_equal_plain_ones(monkeypatch):
    compile_block = nn.Module.compile
    # Traces and guards like the default backend, without compiling C++.
    monkeypatch.setattr(nn.Module, 'compile', lambda self: compile_block(self, backend='eager'))
    torch._dynamo.reset()
    settings = dict(img_size=32, drop_path_rate=0.2)
    limit = torch._dynamo.config.recompile_limit
    models = [MCBEiTViT(TINY, compile_blocks=compiled, **settings) for compiled in (False, True)]
    assert torch._dynamo.config.recompile_limit == limit  # process-wide, not a constructor's to set
    models[1].load_state_dict(models[0].state_dict())
    images, mask = torch.randn(3, 3, 32, 32), torch.rand(3, 4) < 0.5
    outs = []
    # Fewer versions than blocks, as torch's own 8 are for ViT-B.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=2):
        allow_recompiles(dict(backbone=dict(arch=TINY, compile_blocks=True)))
        for model in models:
            torch.manual_seed(1)
            out = model(images, mask)[-1]
            out.square().sum().backward()
            outs.append((out, model.eval()(images)[-1]))
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] >= 3
    for got, expected in zip(*outs, strict=True):
        assert relative_error(got, expected) < 1e-5
    for (name, got), expected in zip(
        models[1].named_parameters(), models[0].parameters(), strict=True
    ):
        assert relative_error(got.grad, expected.grad) < 1e-4, name


@pytest.mark.parametrize(
    'backbone, limit',
    [
        (dict(arch='large', compile_blocks=True), 96),
        (dict(arch=dict(TINY, num_layers=1), compile_blocks=True), 8),
        (dict(arch='large'), 8),
        (None, 8),
    ],
)
def test_recompile_limit_is_raised_for_compiled_blocks_only(backbone, limit):
    with torch._dynamo.config.patch(recompile_limit=8):
        allow_recompiles(dict(backbone=backbone))
        assert torch._dynamo.config.recompile_limit == limit
