"""Ablations: what is run, what is refused, what the table says; one real run, interrupted."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from PIL import Image
from tiny_models import DDCONFIG
from tiny_train import CONFIG

from mcbeit_mm.ablation import plan as ablation
from mcbeit_mm.ablation import table as ablation_table
from mcbeit_mm.fileio.pins import sha256_of
from mcbeit_mm.tokenizers import GumbelVQGANTokenizer

BASE = """
model = dict(
    type='MCBEiT',
    head=dict(omega=0.2, vocab_size=None),
    target_generator=dict(type='GumbelVQGANTokenizer', checkpoint='{folder}/tokenizer'),
)
train_dataloader = dict(
    num_workers=4,
    dataset=dict(type='CustomDataset', data_root='{folder}/data', data_prefix=''),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
randomness = dict(seed=0)
work_dir = 'x'
"""


@pytest.fixture
def folder(tmp_path):
    """A baseline and two deltas, a data folder and a tokenizer."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'tokenizer').mkdir()
    (tmp_path / 'tokenizer/last.ckpt').write_bytes(b'weights')
    (tmp_path / 'baseline.py').write_text(BASE.format(folder=tmp_path))
    for omega in (0, 1):
        text = f"_base_ = './baseline.py'\nmodel = dict(head=dict(omega={omega}.0))\n"
        (tmp_path / f'omega-{omega}.py').write_text(text)
    return tmp_path


def planned(folder, *options, seeds=(0, 1), pattern='*.py', **kwargs):
    configs = ablation.find_configs([str(folder / pattern)])
    return ablation.plan(configs, seeds, folder / 'out', options, **kwargs)


def finish(run, knn=30.0, linear=40.0, epoch=3, block=1):
    """Leave what a finished run leaves, without its weights."""
    (run.folder / 'log/vis_data').mkdir(parents=True, exist_ok=True)
    run.cfg.dump(run.folder / run.config.name)
    (run.folder / 'last_checkpoint').write_text(f'/elsewhere/epoch_{epoch}.pth')
    logged = [dict(step=step, lr=0.1, kl=3 - step / 10, target_entropy=4.0) for step in (1, 2)]
    text = ''.join(json.dumps(entry) + '\n' for entry in logged)
    (run.folder / 'log/vis_data/scalars.json').write_text(text)
    blocks = {str(i): dict(knn=knn - i + block, linear=linear - i + block) for i in range(3)}
    scores = dict(chosen=dict(knn=block, linear=block), blocks=blocks)
    result = dict(data=dict(train=50, val=20, classes=2), models=dict(checkpoint=scores))
    (run.folder / 'features.json').write_text(json.dumps(result))


def test_all_configs_of_a_seed_come_first_and_the_baseline_first_of_all(folder):
    runs = planned(folder, seeds=(5, 2, 5))
    order = [(run.name, run.seed) for run in runs]
    names = ['baseline', 'omega-0', 'omega-1']
    assert order == [(name, seed) for seed in (5, 2) for name in names]
    assert runs[0].folder == folder / 'out/baseline/seed5'
    assert runs[4].options == ('train_dataloader.dataset.data_prefix=train', 'randomness.seed=2')
    assert runs[4].cfg.randomness.seed == 2 and runs[1].cfg.randomness.seed == 5
    assert runs[4].cfg.train_dataloader.dataset.data_prefix == 'train'


def test_own_options_and_precision_arrive(folder):
    prefix = 'train_dataloader.dataset.data_prefix=part'
    (run,) = planned(folder, prefix, seeds=[3], pattern='baseline.py', precision='bf16')
    assert run.options == (prefix, 'randomness.seed=3')
    assert run.cfg.optim_wrapper.type == 'Bf16OptimWrapper'


def test_configs_are_found_once_and_names_are_unique(folder):
    both = [str(folder / 'omega-1.py'), str(folder / 'omega-*.py')]
    assert [path.stem for path in ablation.find_configs(both)] == ['omega-1', 'omega-0']
    with pytest.raises(FileNotFoundError, match='no config matches'):
        ablation.find_configs([str(folder / 'tau-*.py')])
    (folder / 'other').mkdir()
    (folder / 'other/omega-1.py').write_text('')
    with pytest.raises(ValueError, match='called omega-1'):
        ablation.find_configs([str(folder / '*.py'), str(folder / 'other/*.py')])


def test_only_what_is_missing_is_done(folder):
    run, *_ = planned(folder)
    transfer = Config(dict(train_cfg=dict(max_epochs=2)))
    assert ablation.missing_steps(run, transfer) == ['train', 'evaluate', 'finetune']
    finish(run, epoch=2)  # of 3; an evaluation of it counts for nothing
    assert ablation.missing_steps(run) == ['train', 'evaluate']
    finish(run)
    assert ablation.missing_steps(run) == []
    assert ablation.missing_steps(run, transfer) == ['finetune']
    (run.folder / 'finetune').mkdir()
    (run.folder / 'finetune/last_checkpoint').write_text('epoch_2.pth')
    assert ablation.missing_steps(run, transfer) == []
    (run.folder / 'features.json').write_text('{"models": ')  # killed while writing
    assert ablation.missing_steps(run, transfer) == ['evaluate']
    iterations = Config(dict(train_cfg=dict(type='IterBasedTrainLoop', max_iters=7)))
    assert ablation.last_checkpoint(iterations) == 'iter_7.pth'


def test_a_run_of_other_settings_is_refused_with_their_names(folder):
    for run in planned(folder):
        finish(run)
    ablation.check_agreement(planned(folder))
    with pytest.raises(ValueError, match=r'optimizer.lr: 0.001 -> 0.1 in .*omega-1/seed1\. Move'):
        ablation.check_agreement(planned(folder, 'optim_wrapper.optimizer.lr=0.1'))
    with pytest.raises(ValueError, match="optim_wrapper.type: 'OptimWrapper' -> 'Bf16Opt"):
        ablation.check_agreement(planned(folder, precision='bf16'))


@pytest.mark.parametrize(
    'option', ['train_dataloader.num_workers=0', 'model.head.vocab_size=512', 'work_dir=y']
)
def test_what_changes_no_result_is_no_other_experiment(folder, option):
    finish(planned(folder)[0])
    ablation.check_agreement(planned(folder, option))


def test_moved_data_is_the_same_other_data_is_not(folder):
    finish(planned(folder)[0])
    moved, key = folder / 'moved', 'train_dataloader.dataset.data_root'
    ablation.check_agreement(planned(folder, f'{key}={moved}'))  # not there: cannot be compared
    moved.mkdir()
    with pytest.raises(ValueError, match='data_root'):
        ablation.check_agreement(planned(folder, f'{key}={moved}'))
    (folder / 'data').rmdir()
    ablation.check_agreement(planned(folder, f'{key}={moved}'))


def test_tokenizers_are_compared_by_their_hash(folder):
    run = planned(folder)[0]
    finish(run)
    weights = folder / 'tokenizer/last.ckpt'
    identity = dict(type='T', checkpoint=str(weights), sha256=sha256_of(weights))
    checkpoint = dict(state_dict=dict(a=torch.zeros(1)), meta=dict(tokenizer=identity))
    torch.save(checkpoint, run.folder / 'epoch_3.pth')
    for name, content in (('copy', b'weights'), ('other', b'WEIGHTS')):
        (folder / name).mkdir()
        (folder / name / 'last.ckpt').write_bytes(content)
    key = 'model.target_generator.checkpoint'
    ablation.check_agreement(planned(folder, f'{key}={folder}/copy'))
    with pytest.raises(ValueError, match=key):
        ablation.check_agreement(planned(folder, f'{key}={folder}/other'))
    weights.unlink()
    weights.parent.rmdir()  # the hash tells it even when the old one is gone
    with pytest.raises(ValueError, match=key):
        ablation.check_agreement(planned(folder, f'{key}={folder}/other'))


def test_the_table_says_mean_spread_difference_and_what_is_missing(folder):
    runs = planned(folder, seeds=(0, 1, 2))
    knn = dict(baseline=[30.0, 31.0, 35.0], **{'omega-0': [33.0, 34.5], 'omega-1': [29.0]})
    for run in runs:
        if run.seed < len(knn[run.name]):
            finish(run, knn=knn[run.name][run.seed], block=run.seed)
    results = ablation_table.gather(runs)
    text = ablation_table.markdown(results)
    rows = [[cell.strip() for cell in line.strip('| ').split('|')]
            for line in text.splitlines() if line.startswith('|')]  # fmt: skip
    assert rows[0] == ['config', 'changes', 'seeds', 'k-NN', 'Δ', 'linear probe', 'Δ', 'block',
                       'target entropy', 'final KL']  # fmt: skip
    spread = statistics.stdev([30, 31, 35])
    assert spread == pytest.approx(7**0.5)
    assert rows[2][:5] == ['`baseline`', '–', '3', f'32.00 ± {spread:.2f}', '']
    assert rows[2][5:] == ['40.00 ± 0.00', '', '0, 1, 2 / 0, 1, 2', '4.000 ± 0.000',
                           '2.800 ± 0.000']  # fmt: skip
    assert rows[3][:5] == ['`omega-0`', 'head.omega 0.2 → 0.0', '2 of 3', '33.75 ± 1.06',
                           '+3.25 ± 0.35']  # fmt: skip
    assert rows[4][2:5] == ['1 of 3', '29.00', '-1.00']  # one seed has no spread
    assert 'Missing or incomplete: 3 runs: omega-0 (seed 2); omega-1 (seed 1, 2).' in text
    assert 'Features: 50 images to train on, 20 to test.' in text
    assert results['configs']['omega-1']['seeds']['0']['knn'] == 29.0
    json.dumps(results)


def test_finetuning_counts_with_its_best_epoch(folder):
    run, *_ = planned(folder)
    finish(run)
    transfer = Config(dict(train_cfg=dict(max_epochs=2)))
    log = run.folder / 'finetune/log/vis_data'
    log.mkdir(parents=True)
    (run.folder / 'finetune/last_checkpoint').write_text('epoch_2.pth')
    entries = [{'accuracy/top1': top1, 'step': i} for i, top1 in enumerate((50.0, 60.0, 55.0))]
    (log / 'scalars.json').write_text('\n'.join(map(json.dumps, entries)))
    assert ablation_table.measure(run, transfer)['finetune'] == 60.0
    assert 'finetune' not in ablation_table.measure(run)
    assert '| fine-tuned |' in ablation_table.markdown(ablation_table.gather([run], transfer))


def test_evaluations_of_different_images_are_not_comparable(folder):
    runs = planned(folder, seeds=[0])
    for run in runs:
        finish(run)
    file = runs[1].folder / 'features.json'
    file.write_text(file.read_text().replace('"train": 50', '"train": 40'))
    text = ablation_table.markdown(ablation_table.gather(runs))
    assert 'NOT COMPARABLE' in text and '40/20: omega-0 seed 0' in text


def test_the_plot_shows_every_value(folder):
    runs = planned(folder)
    assert ablation_table.figure(ablation_table.gather(runs)) is None
    for run in runs[:4]:
        finish(run, knn=30.0 + run.seed)
    figure = ablation_table.figure(ablation_table.gather(runs))
    knn, linear = figure.axes
    assert knn.get_title() == 'k-NN, top-1 in %' and linear.get_title().startswith('linear probe')
    names = [label.get_text() for label in knn.get_yticklabels()]
    assert names == ['baseline', 'omega-0', 'omega-1']
    dots = [list(line.get_xdata()) for line in knn.lines if line.get_marker() == 'o']
    assert dots == [[30.0, 31.0], [30.0], [30.0]]


def test_changes_in_short():
    def change(key, old, new):
        return ablation.shortened(ablation.Change(tuple(key.split('.')), old, new))

    absent, step = ablation.ABSENT, dict(type='BlockMask', num_masked=75)
    assert change('model.head.tau', 4.0, 1.0) == 'head.tau 4.0 → 1.0'
    assert change('model.head.tau_affinity', absent, 0.1) == 'head.tau_affinity 0.1'
    assert change('x.pipeline.BlockMask', absent, step) == 'with BlockMask(num_masked=75)'
    assert change('x.pipeline.BlockMask', step, absent) == 'without BlockMask(num_masked=75)'


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    import ablate

    return ablate


def test_commands(tool, folder):
    run = planned(folder, pattern='baseline.py')[0]
    args = SimpleNamespace(
        data='D', max_train=9, bf16=True, gpus=None, precision='fp32', finetune='T.py',
        finetune_options=['a=1'],
    )  # fmt: skip
    train = tool.command_for('train', run, args)
    assert train[1:6] == [f'{ROOT}/tools/train.py', str(run.config), '--work-dir',
                          str(run.folder), '--precision']  # fmt: skip
    assert train[-3:] == ['--cfg-options', 'train_dataloader.dataset.data_prefix=train',
                          'randomness.seed=0']  # fmt: skip
    run.folder.mkdir(parents=True)
    (run.folder / 'epoch_1.pth').touch()
    args.gpus = 2
    resumed = tool.command_for('train', run, args)
    assert resumed[:4] == ['bash', f'{ROOT}/tools/dist_train.sh', str(run.config), '2']
    assert '--resume' in resumed
    finetune = tool.command_for('finetune', run, args)
    assert finetune[2] == 'T.py' and finetune[-2:] == ['a=1', 'randomness.seed=0']
    evaluate = tool.command_for('evaluate', run, args)
    features = f'{run.folder}/features.json'
    words = ['--data', 'D', '--out', features, '--max-train', '9', '--bf16']
    assert evaluate[2:] == [str(run.folder), *words]


def test_a_failed_run_is_told_and_the_others_go_on(tool, folder, monkeypatch, capsys):
    def command_for(step, run, args):
        code = 'print("the reason"); raise SystemExit(run == "omega-0")'
        return [sys.executable, '-c', f'run = {run.name!r}; {code}']

    def execute(command, log, env):
        status = subprocess.call(command, stdout=log.open('a'))
        if not status:
            finish(done.pop(0))
        return status

    runs = planned(folder, seeds=[0])
    done = [run for run in runs if run.name != 'omega-0' for _ in range(2)]
    monkeypatch.setattr(tool, 'command_for', command_for)
    monkeypatch.setattr(tool, 'execute', execute)
    args = SimpleNamespace(check=False, out=folder / 'out')
    assert tool.run_all(runs, None, args) == ['omega-0, seed 0']
    error = capsys.readouterr().err
    assert 'train failed with exit status 1' in error and 'the reason' in error
    table = (folder / 'out/table.md').read_text()
    assert 'Missing or incomplete: 1 runs: omega-0 (seed 0).' in table
    assert (folder / 'out/table.png').stat().st_size > 1000


def wait_for(found, process, seconds=200):
    end = time.time() + seconds
    while not found() and process.poll() is None:
        assert time.time() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_interrupted_and_continued(tmp_path):
    """Two configs, two seeds, stopped in the middle of the second run, then run to the end."""
    torch.save(
        dict(state_dict=GumbelVQGANTokenizer(DDCONFIG, 24, 8).state_dict()),
        tmp_path / 'tokenizer.pth',
    )
    text = CONFIG.format(root=ROOT, folder=tmp_path, ddconfig=DDCONFIG)
    (tmp_path / 'baseline.py').write_text(text)
    delta = "_base_ = './baseline.py'\nmodel = dict(head=dict(omega=1.0))\n"
    (tmp_path / 'omega-1.py').write_text(delta)
    rng = np.random.default_rng(0)
    for split, count in (('train', 16), ('val', 4)):
        for label, folder in enumerate(('dark', 'light')):
            (tmp_path / 'photos' / split / folder).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(120 * label, 120 * label + 60, (72, 80, 3), dtype=np.uint8)
                Image.fromarray(image).save(tmp_path / 'photos' / split / folder / f'{i}.png')
    out = tmp_path / 'out'
    command = [sys.executable, 'tools/ablate.py', str(tmp_path / '*.py'), '--data',
               str(tmp_path / 'photos'), '--out', str(out), '--seeds', '0', '1',
               '--cfg-options', 'train_cfg.max_epochs=8', 'param_scheduler.0.end=8']  # fmt: skip
    settings = dict(cwd=ROOT, env=os.environ | dict(PYTHONPATH=str(ROOT)), text=True)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen(command, **settings, **pipes)
    second = out / 'omega-1/seed0'
    wait_for(lambda: (second / 'last_checkpoint').exists(), process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert 'the same command goes on' in error
    first = out / 'baseline/seed0/features.json'
    assert first.exists() and not (second / 'features.json').exists()
    before = first.stat().st_mtime_ns
    done = subprocess.run(command, **settings, **pipes, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '[1/4] baseline, seed 0: finished' in done.stdout
    assert '[2/4] omega-1, seed 0: train (resumed)' in done.stdout
    assert first.stat().st_mtime_ns == before
    results = json.loads((out / 'results.json').read_text())['configs']
    assert results['omega-1']['changes'] == ['head.omega 0.2 → 1.0']
    for row in results.values():
        assert set(row['seeds']) == {'0', '1'} and not row['missing']
        assert all(0 <= v['knn'] <= 100 and v['kl'] >= 0 for v in row['seeds'].values())
    assert (out / 'table.md').read_text().count('±') >= 8 and (out / 'table.png').exists()
