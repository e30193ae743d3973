"""Reconstructions, multi-choice values and code counts against slow counts and a stub tokenizer."""

import math

import numpy as np
import pytest
import torch
from tiny_models import batch, tiny

from mcbeit_mm import targets
from mcbeit_mm.tokenizers.base import Tokenizer
from mcbeit_mm.visualization.targets import (
    Prediction,
    can_decode,
    codes_in_place,
    multi_choice,
    predict,
    reconstructions,
    score_tokenizer,
    select_patches,
)

V, STRIDE = 6, 2


class Gray(Tokenizer):
    """Code k is a patch of brightness k / 10, and brightness is all it sees."""

    def __init__(self):
        super().__init__()
        self.vocab_size, self.stride = V, STRIDE
        self.levels = torch.nn.Parameter(torch.arange(V) / 10)
        self.freeze()

    def normalize(self, images):
        return images

    denormalize = normalize

    def encode(self, x):
        pooled = torch.nn.functional.avg_pool2d(x.mean(1, keepdim=True), STRIDE)
        return -(pooled - self.levels.view(1, -1, 1, 1)).abs() * 50

    def decode_tokens(self, tokens):
        if tokens.is_floating_point():
            image = torch.einsum('bvhw,v->bhw', tokens, self.levels)
        else:
            image = self.levels[tokens]
        image = image.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)
        return image.unsqueeze(1).expand(-1, 3, -1, -1)


class Encoder(Gray):
    """The same without a decoder."""

    def decode_tokens(self, tokens):
        raise ValueError('it can only tokenize')


def gray_images(codes):
    return Gray().decode(codes)


def prediction():
    """Two images with patch grid 3 x 4: the tokenizer's codes, the student's, a mask."""
    codes = torch.randint(V, (2, 3, 4))
    mask = torch.rand(2, 3, 4) < 0.6
    images = gray_images(codes)
    student = torch.randn(2, V, 3, 4)
    feats = torch.randn(2, 12, 8)
    return Prediction(images, mask, Gray()(images), student, feats), codes


def per_patch(pictures):
    """(B, 3, 4, 2, 2, 3): the pixels of each patch of pictures (B, 6, 8, 3)."""
    return pictures.reshape(2, 3, STRIDE, 4, STRIDE, 3).transpose(0, 1, 3, 2, 4, 5)


def test_masked_picture_is_gray_exactly_where_the_mask_is_true():
    shown, _ = prediction()
    pictures = reconstructions(Gray(), shown)
    masked, original = per_patch(pictures['masked']), per_patch(pictures['original'])
    mask = shown.mask.numpy()
    assert 0 < mask.sum() < mask.size
    assert (masked[mask] == 128).all()  # 0.5 * 255 rounds to the even 128
    np.testing.assert_array_equal(masked[~mask], original[~mask])


def test_student_probabilities_are_decoded_at_masked_patches_only():
    shown, codes = prediction()
    pictures = reconstructions(Gray(), shown)
    assert {p.dtype for p in pictures.values()} == {np.dtype('uint8')}
    patches, tokens = per_patch(pictures['student']), per_patch(pictures['tokenizer'])
    for b, i, j in np.ndindex(2, 3, 4):
        level = codes[b, i, j] / 10
        assert np.abs(tokens[b, i, j] - 255 * float(level)).max() <= 0.51
        if shown.mask[b, i, j]:
            level = (shown.student_logits[b, :, i, j].softmax(0) * torch.arange(V) / 10).sum()
        assert np.abs(patches[b, i, j] - 255 * float(level)).max() <= 0.51


def test_predict_is_the_forward_pass_of_the_loss_in_eval_mode():
    model = tiny()
    inputs, samples = batch()
    mask = torch.stack([sample.mask for sample in samples])
    model.train()
    shown = predict(model, inputs, mask)
    assert model.training and not shown.student_logits.requires_grad
    model.eval()
    terms = model.loss(inputs, samples)
    hits = shown.student_logits.argmax(1)[mask] == shown.token_logits.argmax(1)[mask]
    assert hits.float().mean().item() == pytest.approx(terms['mlm_acc'].item())
    weight, bias = model.head.lm_head.weight, model.head.lm_head.bias
    torch.testing.assert_close(
        shown.student_logits.flatten(2).transpose(1, 2), shown.feats @ weight.T + bias
    )


def test_multi_choice_holds_the_values_of_targets():
    model = tiny(head=dict(type='MCBEiTHead', embed_dims=32, vocab_size=24, tau=0.3, omega=0.4))
    inputs, samples = batch()
    shown = predict(model, inputs, torch.stack([sample.mask for sample in samples]))
    probs = targets.soft_probs(shown.token_logits, 0.3)
    weights = targets.affinity(shown.feats, 1.0)
    refined = targets.refine(probs, weights, 0.4)
    choices = multi_choice(model, shown, 1, [3, 10], top=5)
    assert [choice.patch for choice in choices] == [(0, 3), (2, 2)]
    for i, choice in zip((3, 10), choices, strict=True):
        assert (np.diff(choice.after) <= 0).all()
        assert choice.after[0] == pytest.approx(refined[1, i].max().item(), rel=1e-5)
        for values, expected in ((choice.before, probs[1, i]), (choice.after, refined[1, i])):
            np.testing.assert_allclose(values, expected[choice.codes].numpy(), rtol=1e-5)
        student = shown.student_logits[1, :, i // 4, i % 4].softmax(0)
        np.testing.assert_allclose(choice.predicted, student[choice.codes].numpy(), rtol=1e-5)
        np.testing.assert_allclose(choice.affinity, weights[1, i].reshape(4, 4), rtol=1e-5)
        assert choice.affinity.sum() == pytest.approx(1, abs=1e-5)


def test_select_patches_are_masked_and_ordered_by_ambiguity():
    shown, _ = prediction()
    logits = torch.zeros(1, V, 3, 4)
    logits[0, 0] = torch.arange(12.0).reshape(3, 4)  # the surer the later
    mask = torch.zeros(1, 3, 4, dtype=torch.bool)
    mask.view(-1)[[1, 4, 5, 8, 11]] = True
    shown = Prediction(shown.tokenizer_view[:1], mask, logits, logits, shown.feats[:1])
    assert select_patches(shown, 0, count=3) == [11, 5, 1]
    assert select_patches(shown, 0, count=9) == [11, 8, 5, 4, 1]


def test_codes_in_place_shows_each_code_at_its_patch():
    shown, _ = prediction()
    model = type('Model', (), {})()
    model.head = type('Head', (), {})()
    model.head.multi_choice = type('Loss', (), dict(tau=1.0, omega=0.2, tau_affinity=1.0))()
    (choice,) = multi_choice(model, shown, 0, [6], top=4)
    tiles = codes_in_place(Gray(), shown, 0, choice)
    assert tiles.shape == (4, STRIDE, STRIDE, 3)
    levels = np.round(255 * choice.codes / 10)[:, None, None, None]
    assert np.abs(tiles - levels).max() <= 1


def test_scores_against_a_slow_count():
    codes = torch.randint(V - 1, (5, 3, 4))  # the last code stays unused
    noise = 0.04 * torch.rand(5, 3, 3 * STRIDE, 4 * STRIDE)
    images = gray_images(codes) + noise
    scores = score_tokenizer(Gray(), images.split(2))
    ids = Gray()(images).argmax(1)
    counts, sums, psnr = [0] * V, np.zeros((V, STRIDE, STRIDE, 3)), []
    for b in range(5):
        for i, j in np.ndindex(3, 4):
            code = int(ids[b, i, j])
            counts[code] += 1
            patch = images[b, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            sums[code] += patch.permute(1, 2, 0).numpy()
        error = (Gray().decode(ids[b : b + 1])[0] - images[b]).square().mean().item()
        psnr.append(-10 * math.log10(error))
    assert scores.counts.tolist() == counts and scores.num_images == 5
    assert scores.share_used == pytest.approx(sum(c > 0 for c in counts) / V) and counts[-1] == 0
    entropy = -sum(c / 60 * math.log(c / 60) for c in counts if c)
    assert scores.perplexity == pytest.approx(math.exp(entropy), rel=1e-9)
    assert scores.psnr == pytest.approx(np.mean(psnr), abs=1e-3)
    for code in range(V - 1):
        means = 255 * sums[code] / counts[code]
        assert np.abs(scores.mean_patches[code] - means).max() <= 0.51
    assert (scores.mean_patches[-1] == 128).all()
    order = sorted(range(V - 1), key=lambda code: -counts[code])
    assert scores.most_frequent(3).tolist() == order[:3]
    assert len(scores.most_frequent(100)) == V - 1


def test_a_tokenizer_without_decoder_is_counted_all_the_same():
    images = gray_images(torch.randint(V, (2, 3, 4)))
    assert can_decode(Gray()) and not can_decode(Encoder())
    with_decoder, without = (score_tokenizer(t, [images]) for t in (Gray(), Encoder()))
    assert without.psnr is None
    np.testing.assert_array_equal(without.counts, with_decoder.counts)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match='no images'):
        score_tokenizer(Gray(), [])
