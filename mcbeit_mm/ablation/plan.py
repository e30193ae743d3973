"""Plan the runs of an ablation, configs x seeds, and find out what each of them lacks."""

import copy
import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from ..config import launch
from ..config.diff import ABSENT, Change, as_text, differences
from ..engine.experiment import experiment, run_facts, setting_changes


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
    """Return the files of names and globs without duplicates, `baseline` first.

    Raises:
        FileNotFoundError: a glob matches nothing.
        ValueError: two files have one name, and so one folder of results.
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
    """Return all runs, one seed after the other, so that a first table exists early.

    A config that reads all images below the data root is restricted to train/, since features are
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
            own = (*words, f'randomness.seed={seed}')
            folder = out / config.stem / f'seed{seed}'
            runs.append(Run(config, seed, with_seed(cfg, seed), own, folder))
    return sorted(runs, key=lambda run: list(seeds).index(run.seed))


def with_seed(cfg: Config, seed: int) -> Config:
    """Return a copy of a config with another seed."""
    cfg = copy.deepcopy(cfg)
    cfg.merge_from_dict({'randomness.seed': seed})
    return cfg


def is_trained(folder: Path, cfg: Config) -> bool:
    """Whether `last_checkpoint` of a work dir names the final one, which may be deleted by now."""
    note, loop = folder / 'last_checkpoint', cfg.train_cfg
    epochs = loop.get('max_epochs')
    final = f'epoch_{epochs}.pth' if epochs else f'iter_{loop["max_iters"]}.pth'
    return note.is_file() and Path(note.read_text().strip()).name == final


def read_features(folder: Path) -> dict | None:
    """Read the output of tools/evaluate_features.py; None if it is missing or incomplete."""
    try:
        return json.loads((folder / 'features.json').read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def missing_steps(run: Run, finetune: Config | None = None) -> list[str]:
    """Return which of 'train', 'evaluate', 'finetune' a run lacks, in this order."""
    trained = is_trained(run.folder, run.cfg)
    steps = [] if trained else ['train']
    if not (trained and read_features(run.folder)):
        steps.append('evaluate')
    if finetune and not (trained and is_trained(run.folder / 'finetune', finetune)):
        steps.append('finetune')
    return steps


def check_agreement(runs: Sequence[Run], finetune: tuple[Path, Config] | None = None) -> None:
    """Compare the config dumped in each work dir with the one planned for it, also if finished.

    Raises:
        ValueError: names the differences and the folders.
    """
    conflicts: dict[str, list[str]] = {}
    for run in runs:
        places = [(run.folder, run.config.name, run.cfg)]
        if finetune:
            cfg = with_seed(finetune[1], run.seed)
            places.append((run.folder / 'finetune', finetune[0].name, cfg))
        for folder, name, cfg in places:
            if (folder / name).is_file():
                old = Config.fromfile(folder / name, import_custom_modules=False)
                settings = [run_facts(each, 1)['settings'] for each in (old, cfg)]
                if changes := '; '.join(map(str, setting_changes(*settings))):
                    conflicts.setdefault(changes, []).append(str(folder))
    if conflicts:
        parts = [f'{changes} in {", ".join(folders)}' for changes, folders in conflicts.items()]
        raise ValueError(
            'there are runs with different settings (saved -> current): '
            f'{" | ".join(parts)}. Move them away, or use another --out'
        )


def changes_from(baseline: Run, run: Run) -> list[Change]:
    """Return what a config changes relative to the baseline, without the seed."""
    old, new = (experiment(cfg) for cfg in (baseline.cfg, run.cfg))
    for parts in (old, new):
        parts.pop('randomness', None)
    return differences(old, new)


def shortened(change: Change) -> str:
    """Format a change by the end of its key: `head.omega 0.2 → 0.5`, `with BlockMask(...)`."""
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
