"""Plan the runs of an ablation, configs x seeds, and find the missing steps of each."""

import copy
import glob
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from ..config import launch
from ..config.diff import as_text, differences
from ..engine.experiment import experiment, setting_changes


@dataclass(frozen=True)
class Run:
    """One config with one seed.

    `folder` is the work dir, `options` are the --cfg-options of tools/train.py, `finetune` is the
    run that starts from its weights, if any.
    """

    config: Path
    seed: int
    cfg: Config
    options: tuple[str, ...]
    folder: Path
    finetune: 'Run | None' = None

    @property
    def name(self) -> str:
        """Stem of the config."""
        return self.config.stem

    @property
    def is_trained(self) -> bool:
        """Whether `last_checkpoint` names the final checkpoint, which may have been deleted."""
        note, loop = self.folder / 'last_checkpoint', self.cfg.train_cfg
        epochs = loop.get('max_epochs')
        final = f'epoch_{epochs}.pth' if epochs else f'iter_{loop["max_iters"]}.pth'
        return note.is_file() and Path(note.read_text().strip()).name == final

    @property
    def features(self) -> dict | None:
        """The output of tools/evaluate_features.py; None if it is missing or incomplete."""
        try:
            return json.loads((self.folder / 'features.json').read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    @property
    def missing(self) -> list[str]:
        """Steps still to be done, of 'train', 'evaluate' and 'finetune', in this order."""
        trained = self.is_trained
        steps = [] if trained else ['train']
        if not (trained and self.features):
            steps.append('evaluate')
        if self.finetune and not (trained and self.finetune.is_trained):
            steps.append('finetune')
        return steps


def find_configs(patterns: Sequence[str]) -> list[Path]:
    """Return the files of names and globs without duplicates, `baseline` first.

    Raises:
        FileNotFoundError: a name or glob matches nothing.
        ValueError: two files share a name, and with it a folder of results.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        files = sorted(map(Path, glob.glob(pattern)))
        if not files:
            raise FileNotFoundError(f'no config matches {pattern}')
        found |= {file.resolve(): file for file in files}
    names = Counter(path.stem for path in found)
    if double := [name for name, count in names.items() if count > 1]:
        raise ValueError(f'several configs are called {", ".join(double)}: rename one')
    return sorted(found.values(), key=lambda path: path.stem != 'baseline')


def plan(
    configs: Sequence[Path],
    seeds: Sequence[int],
    out: Path,
    options: Sequence[str] = (),
    precision: str | None = None,
    finetune: str | None = None,
    finetune_options: Sequence[str] = (),
) -> list[Run]:
    """Return all runs, seed by seed, so that a first table exists early.

    A config that reads all images below the data root is restricted to train/, since features are
    evaluated on val/.

    Args:
        finetune: config to fine-tune each result with, in the folder `finetune` of its work dir.
    """
    loaded = [(config, list(options), _load(config, options, precision)) for config in configs]
    for _, words, cfg in loaded:
        if cfg.train_dataloader.dataset.get('data_prefix') == '':
            words.append('train_dataloader.dataset.data_prefix=train')
            cfg.train_dataloader.dataset.data_prefix = 'train'
    transfer = _load(finetune, finetune_options, precision) if finetune else None
    runs = []
    for seed in dict.fromkeys(seeds):
        for config, words, cfg in loaded:
            folder, after = out / config.stem / f'seed{seed}', None
            if finetune:
                place = folder / 'finetune'
                after = _seeded(Path(finetune), seed, transfer, finetune_options, place)
            runs.append(_seeded(config, seed, cfg, words, folder, after))
    return runs


def _load(config: str | Path, options: Sequence[str], precision: str | None) -> Config:
    cfg = launch.load_config(str(config), options)
    if precision:
        launch.set_precision(cfg, precision)
    return cfg


def _seeded(
    config: Path,
    seed: int,
    cfg: Config,
    options: Sequence[str],
    folder: Path,
    finetune: Run | None = None,
) -> Run:
    cfg = copy.deepcopy(cfg)
    cfg.merge_from_dict({'randomness.seed': seed})
    return Run(config, seed, cfg, (*options, f'randomness.seed={seed}'), folder, finetune)


def check_agreement(runs: Sequence[Run]) -> None:
    """Compare the config dumped in each work dir, even of a finished run, with the planned one.

    Raises:
        ValueError: a folder has a run with different settings.
    """
    for run in [*runs, *(run.finetune for run in runs if run.finetune)]:
        dumped = run.folder / run.config.name
        if dumped.is_file():
            old = Config.fromfile(dumped, import_custom_modules=False)
            if changes := setting_changes(experiment(old), experiment(run.cfg)):
                raise ValueError(
                    f'{run.folder} has a run with different settings (saved -> current): '
                    f'{"; ".join(map(str, changes))}. Move it away, or use another --out'
                )


def changes_from(baseline: Run, run: Run) -> list[str]:
    """Return the settings of a run that differ from the baseline: `head.omega 0.2 → 0.5`."""
    old, new = experiment(baseline.cfg), experiment(run.cfg)
    return [
        f'{".".join(change.key[-2:])} {as_text(change.old)} → {as_text(change.new)}'
        for change in differences(old, new)
        if change.name != 'randomness.seed'
    ]
