"""Which checkpoint a run goes on from."""

import sys
from pathlib import Path

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner


def find_checkpoint(path: str | Path) -> Path:
    """Return the file itself, or the newest checkpoint of a work dir (which may have moved)."""
    path = Path(path)
    if path.is_file():
        return path
    noted = path / 'last_checkpoint'
    names = [path / Path(noted.read_text().strip()).name] if noted.is_file() else []
    names += sorted(path.glob('*.pth'), key=lambda file: file.stat().st_mtime, reverse=True)
    found = next((file for file in names if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(f'no checkpoint {path}: give a .pth file or the work dir of a run')
    return found


def checkpoint_to_resume(work_dir: str, resume: str) -> str | None:
    """What `--resume` means: a file, the newest of a work dir, or 'auto', which may start anew."""
    if resume != 'auto':
        return str(find_checkpoint(resume))
    try:
        return str(find_checkpoint(work_dir))
    except FileNotFoundError:
        print(f'nothing to resume in {work_dir}: starting from the beginning', file=sys.stderr)
        return None


def skip_initial_weights(runner: Runner) -> None:
    """Leave out the pretrained weights of a run that is resumed; its config still names them."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if hasattr(model, 'backbone'):
        model.backbone.init_cfg = None
