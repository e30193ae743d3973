"""Compute what the pictures show: reconstructions, multi-choice targets, code counts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..mcbeit import MCBEiT
from ..targets import affinity, refine, soft_probs
from ..tokenizers.base import Tokenizer, to_uint8
from ..tokenizers.training.codebook import perplexity
from ..tokenizers.training.metrics import psnr


@dataclass(frozen=True)
class Prediction:
    """Outputs of tokenizer and student for B images with patch grid (h, w).

    Tokenizer view (B, 3, h*s, w*s) in [0, 1], mask (B, h, w) bool, token_logits and
    student_logits (B, V, h, w), the student's feats (B, L, D) of the masked images.
    """

    tokenizer_view: Tensor
    mask: Tensor
    token_logits: Tensor
    student_logits: Tensor
    feats: Tensor


@torch.no_grad()
def predict(model: MCBEiT, inputs: Sequence[Tensor], mask: Tensor) -> Prediction:
    """Run tokenizer and student in eval mode on `inputs` as in `MCBEiT.loss`; mask (B, h, w)."""
    student_view, tokenizer_view = inputs
    mask = mask.bool().to(student_view.device)
    training = model.training
    model.eval()
    try:
        token_logits = model.tokenizer(tokenizer_view)
        feats = model.backbone(student_view, mask)[-1][:, 1:]
        logits = model.head(feats)
    finally:
        model.train(training)
    student_logits = logits.transpose(1, 2).unflatten(2, token_logits.shape[2:])
    return Prediction(tokenizer_view, mask, token_logits, student_logits, feats)


def reconstructions(tokenizer: Tokenizer, prediction: Prediction) -> dict[str, np.ndarray]:
    """Return pictures (B, H, W, 3) uint8 by name: inputs, decoded tokens, decoded predictions.

    The student's probabilities replace the tokenizer's codes at masked patches only.
    """
    mask, codes = prediction.mask, prediction.token_logits.argmax(dim=1)
    known = F.one_hot(codes, tokenizer.vocab_size).permute(0, 3, 1, 2).float()
    probs = torch.where(mask.unsqueeze(1), prediction.student_logits.float().softmax(dim=1), known)
    stride = tokenizer.stride
    hidden = mask.repeat_interleave(stride, dim=1).repeat_interleave(stride, dim=2).unsqueeze(1)
    pictures = {
        'original': prediction.tokenizer_view,
        'masked': torch.where(hidden, 0.5, prediction.tokenizer_view),
        'tokenizer': tokenizer.decode(codes),
        'student': tokenizer.decode(probs),
    }
    return {name: to_uint8(images) for name, images in pictures.items()}


@dataclass(frozen=True)
class MultiChoice:
    """Target of one patch (row, column).

    K codes with their probabilities (K,) before and after refinement and as the student predicts
    them, and the patch's row of the affinity (h, w).
    """

    patch: tuple[int, int]
    codes: np.ndarray
    before: np.ndarray
    after: np.ndarray
    predicted: np.ndarray
    affinity: np.ndarray


@torch.no_grad()
def multi_choice(
    model: MCBEiT, prediction: Prediction, image: int, patches: Sequence[int], top: int
) -> list[MultiChoice]:
    """Compute the targets of some patches (flat indices) of one image with the head's settings.

    `top` is the number of codes to keep, the most likely ones after refinement.
    """
    settings = model.head.multi_choice
    probs = soft_probs(prediction.token_logits[image : image + 1], settings.tau)
    weights = affinity(prediction.feats[image : image + 1], settings.tau_affinity)
    refined = refine(probs, weights, settings.omega)
    predicted = soft_probs(prediction.student_logits[image : image + 1], 1.0)
    grid = tuple(prediction.mask.shape[1:])
    choices = []
    for i in patches:
        codes = refined[0, i].topk(min(top, refined.shape[-1])).indices
        values = (x[0, i, codes].cpu().numpy() for x in (probs, refined, predicted))
        row = weights[0, i].reshape(grid).cpu().numpy()
        choices.append(MultiChoice(divmod(i, grid[1]), codes.cpu().numpy(), *values, row))
    return choices


def select_patches(prediction: Prediction, image: int, count: int) -> list[int]:
    """Select masked patches (flat indices), from least to most ambiguous for the tokenizer."""
    probs = soft_probs(prediction.token_logits[image : image + 1], 1.0)[0]
    entropy = torch.special.entr(probs).sum(dim=-1)
    masked = prediction.mask[image].flatten().nonzero().flatten()
    order = masked[entropy[masked].argsort(stable=True)].tolist()
    picks = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [order[i] for i in picks]


def can_decode(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer's weights include a decoder."""
    device = next(tokenizer.parameters()).device
    try:
        tokenizer.decode(torch.zeros(1, 1, 1, dtype=torch.long, device=device))
    except ValueError:
        return False
    return True


def codes_in_place(
    tokenizer: Tokenizer, prediction: Prediction, image: int, choice: MultiChoice
) -> np.ndarray:
    """Decode each code of `choice` at its patch, (K, s, s, 3) uint8.

    The other patches keep the tokenizer's codes: alone, a code loses its contrast in the decoder's
    group norms.
    """
    row, column = choice.patch
    codes = prediction.token_logits[image].argmax(dim=0).repeat(len(choice.codes), 1, 1)
    codes[:, row, column] = torch.as_tensor(choice.codes, device=codes.device)
    stride = tokenizer.stride
    rows = slice(row * stride, (row + 1) * stride)
    columns = slice(column * stride, (column + 1) * stride)
    return to_uint8(tokenizer.decode(codes)[:, :, rows, columns])


@dataclass(frozen=True)
class TokenizerScores:
    """Usage of the V codes over all patches of some images.

    `counts` (V,); `mean_patches` (V, s, s, 3) uint8, the average patch of a code, gray for unused
    ones; `psnr` of the reconstruction in dB, None without a decoder.
    """

    counts: np.ndarray
    mean_patches: np.ndarray
    num_images: int
    psnr: float | None

    @property
    def share_used(self) -> float:
        """Share of the codes in use, 0..1."""
        return float((self.counts > 0).mean())

    @property
    def perplexity(self) -> float:
        """Effective number of codes."""
        return perplexity(torch.from_numpy(self.counts)).item()

    def most_frequent(self, count: int) -> np.ndarray:
        """Return the ids of at most `count` used codes, most frequent first."""
        return (-self.counts).argsort(kind='stable')[: min(count, (self.counts > 0).sum())]


@torch.no_grad()
def score_tokenizer(tokenizer: Tokenizer, batches: Iterable[Tensor]) -> TokenizerScores:
    """Count codes, average their patches, take the mean PSNR per image; images in [0, 1]."""
    stride, decodes, psnrs, num_images = tokenizer.stride, can_decode(tokenizer), [], 0
    counts = torch.zeros(tokenizer.vocab_size, dtype=torch.long)
    sums = torch.zeros(tokenizer.vocab_size, 3 * stride**2)
    for images in batches:
        num_images += len(images)
        codes = tokenizer(images).argmax(dim=1)
        if decodes:
            psnrs += psnr(tokenizer.decode(codes), images).tolist()
        codes = codes.flatten().cpu()
        counts += torch.bincount(codes, minlength=len(counts))
        patches = F.unfold(images.float().cpu(), stride, stride=stride).transpose(1, 2)
        sums.index_add_(0, codes, patches.flatten(0, 1))
    if not num_images:
        raise ValueError('no images to measure the tokenizer on')
    means = torch.where(counts.unsqueeze(1) > 0, sums / counts.clamp(min=1).unsqueeze(1), 0.5)
    pictures = to_uint8(means.unflatten(1, (3, stride, stride)))
    mean = float(np.mean(psnrs)) if decodes else None
    return TokenizerScores(counts.numpy(), pictures, num_images, mean)
