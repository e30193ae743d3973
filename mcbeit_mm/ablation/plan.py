"""Configs x seeds -> runs, and what each of them still lacks. Nothing is run or written here."""

import copy
import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from mmengine.config import Config

from ..config import launch
from ..config.diff import ABSENT, Change, as_text, differences
from ..engine import resume
from ..engine.experiment import experiment, is_same
from ..fileio.pins import sha256_of


@dataclass(frozen=True)
class Run:
    """One config with one seed; `folder` is the work dir, `options` those of tools/train.py."""

    config: Path
    seed: int
    cfg: Config
    options: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        """Stem of the config."""
        return self.config.stem

    def __str__(self) -> str:
        return f'{self.name}, seed {self.seed}'


def find_configs(patterns: Sequence[str]) -> list[Path]:
    """Files of the given names and globs, `baseline` first, each once.

    FileNotFoundError if a glob finds nothing; ValueError if two files have one name, which is
    that of the folder of results.
    """
    found: list[Path] = []
    for pattern in patterns:
        if glob.has_magic(pattern) and not Path(pattern).exists():
            files = sorted(map(Path, glob.glob(pattern)), key=lambda path: path.stem)
            if not files:
                raise FileNotFoundError(f'no config matches {pattern}')
            found += files
        else:
            found.append(Path(pattern))
    unique = list({path.resolve(): path for path in found}.values())
    stems = [path.stem for path in unique]
    if double := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ValueError(f'several configs are called {", ".join(double)}: rename one')
    return sorted(unique, key=lambda path: path.stem != 'baseline')


def plan(
    configs: Sequence[Path],
    seeds: Sequence[int],
    out: Path,
    options: Sequence[str] = (),
    precision: str | None = None,
) -> list[Run]:
    """All runs, all configs of a seed before the next seed, so that a table exists early.

    A config that takes every image below the data root is restricted to its train/: features are
    evaluated on val/.
    """
    runs = []
    for config in configs:
        words, cfg = list(options), launch.load_config(str(config), options)
        if precision:
            launch.set_precision(cfg, precision)
        if cfg.train_dataloader.dataset.get('data_prefix') == '':
            words.append('train_dataloader.dataset.data_prefix=train')
            cfg.train_dataloader.dataset.data_prefix = 'train'
        for seed in dict.fromkeys(seeds):
            seeded = copy.deepcopy(cfg)
            seeded.merge_from_dict({'randomness.seed': seed})
            own = (*words, f'randomness.seed={seed}')
            runs.append(Run(config, seed, seeded, own, out / config.stem / f'seed{seed}'))
    return sorted(runs, key=lambda run: list(seeds).index(run.seed))


def last_checkpoint(cfg: Config) -> str:
    """Name of the file that training ends with."""
    loop = cfg.train_cfg
    epochs = loop.get('max_epochs')
    return f'epoch_{epochs}.pth' if epochs else f'iter_{loop["max_iters"]}.pth'


def is_trained(folder: Path, cfg: Config) -> bool:
    """Whether a work dir has reached the end, by the note that MMEngine leaves beside a checkpoint.

    The checkpoint itself may have been deleted to save space.
    """
    noted = folder / 'last_checkpoint'
    return noted.is_file() and Path(noted.read_text().strip()).name == last_checkpoint(cfg)


def read_features(folder: Path) -> dict | None:
    """What tools/evaluate_features.py wrote; None if nothing, or half a file."""
    try:
        return json.loads((folder / 'features.json').read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def missing_steps(run: Run, finetune: Config | None = None) -> list[str]:
    """What a run lacks, in the order it has to be done, of 'train', 'evaluate', 'finetune'."""
    trained = is_trained(run.folder, run.cfg)
    steps = [] if trained else ['train']
    if not (trained and read_features(run.folder)):
        steps.append('evaluate')
    if finetune and not (trained and is_trained(run.folder / 'finetune', finetune)):
        steps.append('finetune')
    return steps


def conflicts(folder: Path, name: str, cfg: Config) -> list[Change]:
    """How the config that a work dir was made with differs from the one it is to hold now.

    See `experiment.is_same` for what does not count. Tokenizer weights at another place differ if
    their SHA-256 is not the one recorded in the checkpoint.
    """
    dumped = folder / name
    if not dumped.is_file():
        return []
    old = Config.fromfile(dumped, import_custom_modules=False)
    changes = differences(experiment(old), experiment(cfg))
    same_tokenizer = partial(_is_recorded_tokenizer, folder)
    return [change for change in changes if not is_same(change, same_tokenizer)]


def _is_recorded_tokenizer(folder: Path, old: str, new: str) -> bool | None:
    """Whether the weights at `new` are those the run used from `old`; None if unknown."""
    if not Path(new).exists():
        return None
    recorded = _recorded_tokenizer(folder)
    try:
        file = Path(new, Path(recorded['checkpoint']).relative_to(old))
        return file.is_file() and _sha256(file) == recorded['sha256']
    except (KeyError, TypeError, ValueError):  # no record, or one of another place
        return None


@cache
def _sha256(file: Path) -> str:
    return sha256_of(file)


def _recorded_tokenizer(folder: Path) -> dict:
    try:
        return resume.read_meta(resume.find_checkpoint(folder)).get('tokenizer') or {}
    except FileNotFoundError:
        return {}


def check_agreement(runs: Sequence[Run], finetune: tuple[Path, Config] | None = None) -> None:
    """ValueError naming the folders that hold runs of other settings, and these settings."""
    wrong: dict[str, list[str]] = {}
    for run in runs:
        places = [(run.folder, run.config.name, run.cfg)]
        if finetune:
            cfg = copy.deepcopy(finetune[1])
            cfg.merge_from_dict({'randomness.seed': run.seed})
            places.append((run.folder / 'finetune', finetune[0].name, cfg))
        for folder, name, cfg in places:
            if changes := conflicts(folder, name, cfg):
                wrong.setdefault('; '.join(map(str, changes)), []).append(str(folder))
    if wrong:
        parts = [f'{changes} in {", ".join(folders)}' for changes, folders in wrong.items()]
        raise ValueError(
            'there are runs made with other settings (theirs -> asked for now): '
            f'{" | ".join(parts)}. Move them away, or give another --out'
        )


def changes_from(baseline: Run, run: Run) -> list[Change]:
    """What a config changes relative to the baseline, whatever the seed."""
    old, new = (experiment(cfg) for cfg in (baseline.cfg, run.cfg))
    for parts in (old, new):
        parts.pop('randomness', None)
    return differences(old, new)


def shortened(change: Change) -> str:
    """A change for people, by the end of its key: `head.omega 0.2 → 0.5`, `with BlockMask(...)`."""
    name = '.'.join(change.key[-2:])
    kept = change.new if change.old is ABSENT else change.old
    if ABSENT in (change.old, change.new) and isinstance(kept, dict):  # a step of a list
        values = ', '.join(f'{k}={as_text(v)}' for k, v in kept.items() if k != 'type')
        sign = 'with' if change.old is ABSENT else 'without'
        return f'{sign} {change.key[-1]}({values})'
    if change.new is ABSENT:
        return f'without {name} ({as_text(change.old)})'
    if change.old is ABSENT:
        return f'{name} {as_text(change.new)}'
    return f'{name} {as_text(change.old)} → {as_text(change.new)}'
