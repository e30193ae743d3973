"""Results of finished runs as a table and a plot."""

import json
import statistics
from dataclasses import replace

import pytest
from mmengine.config import Config
from small_ablation import finish, planned, write_configs

from mcbeit_mm.ablation import table


@pytest.fixture
def folder(tmp_path):
    return write_configs(tmp_path)


def test_the_table_shows_mean_spread_difference_and_missing_runs(folder):
    runs = planned(folder, seeds=(0, 1, 2))
    knn = dict(baseline=[30.0, 31.0, 35.0], **{'omega-0': [33.0, 34.5], 'omega-1': [29.0]})
    for run in runs:
        if run.seed < len(knn[run.name]):
            finish(run, knn=knn[run.name][run.seed], block=run.seed)
    results = table.gather(runs)
    text = table.markdown(results)
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
    assert 'Features: 50/20 training/validation images.' in text
    assert results['configs']['omega-1']['seeds']['0']['knn'] == 29.0
    json.dumps(results)


def test_finetuning_counts_with_its_best_epoch(folder):
    run, *_ = planned(folder)
    finish(run)
    transfer = Config(dict(train_cfg=dict(max_epochs=2)))
    tuned = replace(run, finetune=replace(run, cfg=transfer, folder=run.folder / 'finetune'))
    log = run.folder / 'finetune/log/vis_data'
    log.mkdir(parents=True)
    (run.folder / 'finetune/last_checkpoint').write_text('epoch_2.pth')
    entries = [{'accuracy/top1': top1, 'step': i} for i, top1 in enumerate((50.0, 60.0, 55.0))]
    (log / 'scalars.json').write_text('\n'.join(map(json.dumps, entries)))
    assert table.measure(tuned)['finetune'] == 60.0
    assert 'finetune' not in table.measure(run)
    assert '| fine-tuned |' in table.markdown(table.gather([tuned]))


def test_evaluations_of_different_images_are_not_comparable(folder):
    runs = planned(folder, seeds=[0])
    for run in runs:
        finish(run)
    file = runs[1].folder / 'features.json'
    file.write_text(file.read_text().replace('"train": 50', '"train": 40'))
    text = table.markdown(table.gather(runs))
    assert 'NOT COMPARABLE' in text and 'omega-0 seed 0: 40/20' in text


def test_the_plot_shows_every_value(folder):
    runs = planned(folder)
    assert table.figure(table.gather(runs)) is None
    for run in runs[:4]:
        finish(run, knn=30.0 + run.seed)
    figure = table.figure(table.gather(runs))
    knn, linear = figure.axes
    assert knn.get_title() == 'k-NN, top-1 in %' and linear.get_title().startswith('linear probe')
    names = [label.get_text() for label in knn.get_yticklabels()]
    assert names == ['baseline', 'omega-0', 'omega-1']
    dots = [list(line.get_xdata()) for line in knn.lines if line.get_marker() == 'o']
    assert dots == [[30.0, 31.0], [30.0], [30.0]]
