"""Write one HTML report on a pretraining run and transfer runs."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ..tokenizers.training.metrics import psnr
from .logs import read_scalars
from .method import method_figure
from .page import render
from .pretraining_report import features_section, pretraining_sections
from .pretraining_run import image_folder, load_batches, load_run
from .transfer_report import transfer_sections


def write_report(
    work_dir: Path | None = None,
    *,
    checkpoint: Path | None = None,
    features: Path | None = None,
    tokenizer_dir: Path | None = None,
    data: Path | None = None,
    transfers: Sequence[Sequence[Path]] = (),
    out: Path | None = None,
    num_images: int = 256,
    device: str | None = None,
    cfg_options: Sequence[str] = (),
) -> Path:
    """Write the report of a pretraining run, of transfers, or of both; return its path.

    Args:
        work_dir: of a pretraining run of tools/train.py.
        checkpoint: default: the newest of `work_dir`.
        features: JSON of tools/evaluate_features.py --out.
        tokenizer_dir: work dir of the tokenizer's training, for its curves.
        data: image folder, see `image_folder`.
        transfers: per task, the work dirs to compare.
        out: default: `work_dir`/report.html.
        num_images: number of images to measure the tokenizer on.
        device: default: 'cuda' if available, else 'cpu'.
    """
    device, title, sections = device or default_device(), 'Transfer', []
    if features:
        sections.append(features_section(_read_json(features)))
    if transfers:
        sections += transfer_sections(transfers, device)
    if work_dir:
        scalars = read_scalars(work_dir)
        tokenizer_log = read_scalars(tokenizer_dir) if tokenizer_dir else []
        run = load_run(work_dir, checkpoint, device, cfg_options)
        title, folder = f'mc-BEiT pretraining: {run.config_file.stem}', image_folder(run.cfg, data)
        sections += pretraining_sections(run, folder, scalars, tokenizer_log, num_images)
    out = out or work_dir / 'report.html'
    out.write_text(render(title, sections))
    return out


def write_method_figure(
    work_dir: Path,
    out: Path,
    *,
    checkpoint: Path | None = None,
    data: Path | None = None,
    device: str | None = None,
    cfg_options: Sequence[str] = (),
) -> Path:
    """Write `method_figure` of a pretraining run as an image file; return its path.

    It shows the one of 16 images that the tokenizer reconstructs best. Arguments as in
    `write_report`. ValueError if the tokenizer has no decoder.
    """
    run = load_run(work_dir, checkpoint, device or default_device(), cfg_options)
    ((inputs, mask),) = load_batches(run, image_folder(run.cfg, data), 16)
    tokenizer, views = run.model.tokenizer, inputs[1]
    with torch.no_grad():
        image = int(psnr(tokenizer.decode(tokenizer(views).argmax(dim=1)), views).argmax())
    method_figure(run.model, inputs, mask, image).savefig(out, dpi=200)
    return out


def default_device() -> str:
    """Return 'cuda' if available, else 'cpu'."""
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def _read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f'{file} is not JSON: {error}') from error
