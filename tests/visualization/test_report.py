"""The HTML of a report and tools/report.py on a tiny run."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from html_page import Page
from mmengine.config import Config
from PIL import Image
from tiny_models import ARCH, NORM, TOKENIZER, tiny

from mcbeit_mm.tokenizers import GumbelVQGANTokenizer
from mcbeit_mm.visualization import report
from mcbeit_mm.visualization.targets import TokenizerScores

TITLES = [
    'Accuracy of the frozen features', 'Training curves', 'Reconstructions',
    'Multi-choice targets', 'Tokenizer', 'Use of the codebook', 'About this run',
]  # fmt: skip


def block(knn, linear):
    return dict(knn=knn, linear=linear, knn_held_out=0.0, linear_held_out=0.0, linear_strength=1.0)


def features():
    checkpoint = {'0': block(31.25, 41.0), '1': block(22.0, 35.5)}
    random = {'0': block(11.0, 12.0), '1': block(13.0, 9.5)}
    return dict(
        checkpoint='x.pth',
        data=dict(root='data', train=100, val=80, classes=10),
        k=20,
        models={
            'checkpoint': dict(chosen=dict(knn=0, linear=0), blocks=checkpoint),
            'random init': dict(chosen=dict(knn=1, linear=0), blocks=random),
        },
    )


def scalars(first=1, last=4):
    keys = ('loss', 'kl', 'target_entropy', 'mlm_acc', 'lr', 'grad_norm', 'rec', 'psnr')
    return [
        dict.fromkeys(keys, 1 / step)
        | dict(step=step, time=3.0, images_per_s=40.0 + step, tokenizer_share=0.25)
        for step in range(first, last + 1)
    ]


def test_text_is_escaped_and_pictures_come_back():
    picture = np.random.randint(0, 255, (5, 7, 3), dtype=np.uint8)
    html = (
        report.note('a < b & c') + report.image(picture, '"quoted"') + report.table([['<i>', 'x']])
    )
    page = Page(report.build_report('<title>', 'an & intro', [report.Section('A > B', html)]))
    np.testing.assert_array_equal(page.pictures[0], picture)
    assert page.titles == ['A > B'] and page.links[0] == '#s0'
    for text in ('<title>', 'an & intro', 'a < b & c', '<i>'):
        assert text in page.texts


def test_headline_quotes_best_and_last_block_and_the_gain():
    page = Page(report.features_section(features()).html)
    rows = [
        ('k-NN, best block', '31.2 % (block 0)', '13.0 % (block 1)', '+18.2'),
        ('k-NN, last block', '22.0 % (block 1)', '13.0 % (block 1)', '+9.0'),
        ('linear probe, best block', '41.0 % (block 0)', '12.0 % (block 0)', '+29.0'),
        ('linear probe, last block', '35.5 % (block 1)', '9.5 % (block 1)', '+26.0'),
    ]
    found = '|'.join(text for text in page.texts if text.strip())
    for row in rows:
        assert '|'.join(row) in found
    assert 'guessing gives 10.0 %, one image counts 1.2 %' in page.text and len(page.pictures) == 1


def test_headline_without_random_weights_has_no_gain():
    scores = features()
    del scores['models']['random init']
    page = Page(report.features_section(scores).html)
    assert 'gain' not in page.texts and '31.2 % (block 0)' in page.texts
    with pytest.raises(ValueError, match="no model 'checkpoint'"):
        report.features_section(dict(scores, models={}))


def test_facts_add_up_the_time_of_all_steps():
    log = [dict(entry, step=10 * entry['step']) for entry in scalars()]
    log.insert(2, dict(step=25, knn_top1=3.0))  # logged between training steps
    text = report.facts_section({'config': 'a.py'}, log).html
    page = Page(text)
    assert '2.0 min' in page.texts  # 40 steps of 3 s
    assert '42 images/s' in page.texts and '25 % of the time' in page.texts
    assert '40' in page.texts and 'a.py' in page.texts


def test_tokenizer_section_states_its_numbers():
    counts = np.array([30, 10, 0, 0])
    scores = TokenizerScores(counts, np.zeros((4, 2, 2, 3), np.uint8), 5, 21.55)
    page = Page(report.tokenizer_section(scores, scalars()).html)
    for text in ('4', '50.0 %', '1.8', '75.0 % of the patches', '21.6 dB'):
        assert text in page.texts
    assert len(page.pictures) == 1
    blind = TokenizerScores(counts, scores.mean_patches, 5, None)
    page = Page(report.tokenizer_section(blind).html)
    assert not page.pictures and 'dB' not in page.text
    assert len(Page(report.codebook_section(scores).html).pictures) == 1 + 2


def test_a_log_without_curves_is_refused():
    with pytest.raises(ValueError, match='holds none of loss'):
        report.curves_section([dict(step=1, time=1.0)])


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('report_tool', ROOT / 'tools' / 'report.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_dir(tmp_path):
    """What a pretraining run of a tiny model leaves, with 8 + 5 images."""
    for split, count in (('train', 8), ('val', 5)):
        folder = tmp_path / 'data' / split / 'a'
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = np.random.randint(0, 255, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f'{i}.png')
    torch.save(dict(state_dict=GumbelVQGANTokenizer(
        TOKENIZER['ddconfig'], TOKENIZER['n_embed'], TOKENIZER['embed_dim']
    ).state_dict()), tmp_path / 'tokenizer.pth')  # fmt: skip
    target_generator = dict(TOKENIZER, checkpoint=str(tmp_path / 'tokenizer.pth'))
    model = tiny(target_generator=target_generator)
    work_dir = tmp_path / 'run'
    for name, log in (('1', scalars(1, 4)), ('2', scalars(3, 6))):
        folder = work_dir / name / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text(''.join(json.dumps(entry) + '\n' for entry in log))
    (work_dir / '2' / '2.log').write_text('env:\n    Python: 3.11.7 (main)\n    PyTorch: 2.12.1\n')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='RandomFlip', prob=0.5),
        dict(type='TwoViewRandomResizedCrop', size=64, second_size=32),
        dict(type='RandomPatchMask', grid_size=4),
        dict(type='PackInputs'),
    ]
    dataset = dict(
        type='CustomDataset', data_root=str(tmp_path / 'data'), data_prefix='train',
        with_label=False, pipeline=pipeline,
    )  # fmt: skip
    Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='MCBEiT',
                backbone=dict(type='MCBEiTViT', arch=ARCH, img_size=64),
                head=dict(type='MCBEiTHead', embed_dims=32, vocab_size=24),
                target_generator=target_generator,
                data_preprocessor=NORM,
            ),
            train_dataloader=dict(batch_size=4, dataset=dataset),
        )
    ).dump(work_dir / 'tiny.py')
    meta = dict(epoch=3, tokenizer=dict(model.tokenizer.identity))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), work_dir / 'epoch_3.pth')
    (work_dir / 'last_checkpoint').write_text('/somewhere/else/epoch_3.pth')  # the folder was moved
    return work_dir


def run_tool(tool, monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['report.py', *map(str, args)])
    tool.main()


def test_report_of_a_finished_run(tool, run_dir, tmp_path, monkeypatch, capsys):
    (tmp_path / 'features.json').write_text(json.dumps(features()))
    out = tmp_path / 'out.html'
    options = ['--features', tmp_path / 'features.json', '--tokenizer-dir', run_dir, '--out', out]
    run_tool(tool, monkeypatch, run_dir, *options, '--device', 'cpu')
    assert str(out) in capsys.readouterr().out
    page = Page(out.read_text())
    assert page.titles == TITLES
    assert not [link for link in page.links if not link.startswith(('#', 'data:image/png'))]
    # 5 images x 5 pictures, 6 targets, 4 charts, and one tile for each code that occurs
    used = int(next(t for t in page.texts if 'most frequent codes' in t).split()[1])
    assert len(page.pictures) == 25 + 6 + 4 + used
    assert str(tmp_path / 'data' / 'val') in page.texts  # rather than the training images
    assert '3.11.7' in page.texts and f'{run_dir / "epoch_3.pth"}, epoch 3' in page.texts
    again = tmp_path / 'again.html'
    run_tool(tool, monkeypatch, run_dir, *options[:-1], again, '--device', 'cpu')
    assert Page(again.read_text()).text == page.text


def test_features_and_tokenizer_log_are_optional(tool, run_dir, monkeypatch):
    run_tool(tool, monkeypatch, run_dir, '--data', run_dir.parent / 'data' / 'train')
    page = Page((run_dir / 'report.html').read_text())
    assert page.titles == TITLES[1:]
    assert str(run_dir.parent / 'data' / 'train') in page.texts


def test_mistakes_are_one_line(tool, run_dir, tmp_path, monkeypatch, capsys):
    def error(*args):
        with pytest.raises(SystemExit) as stop:
            run_tool(tool, monkeypatch, *args)
        assert stop.value.code == 2
        text = capsys.readouterr().err.strip().splitlines()[-1]
        assert text.startswith('error: ')
        return text

    (tmp_path / 'broken.json').write_text('{')
    (tmp_path / 'empty').mkdir()
    assert 'no training log' in error(tmp_path / 'empty')
    assert 'is no JSON' in error(run_dir, '--features', tmp_path / 'broken.json')
    assert 'nowhere' in error(run_dir, '--data', tmp_path / 'nowhere')
    assert 'no images in' in error(run_dir, '--data', tmp_path / 'empty')
    torch.save(dict(state_dict=dict(a=torch.zeros(1))), tmp_path / 'other.pth')
    assert 'does not fit the config' in error(run_dir, '--checkpoint', tmp_path / 'other.pth')
    torch.manual_seed(5)
    sizes = (TOKENIZER['ddconfig'], TOKENIZER['n_embed'], TOKENIZER['embed_dim'])
    weights = GumbelVQGANTokenizer(*sizes).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'tokenizer.pth')
    assert 'the run had the tokenizer' in error(run_dir)
    (run_dir / 'tiny.py').unlink()
    assert 'no *.py in' in error(run_dir)


def test_help_answers_without_importing_torch():
    code = (
        'import runpy, sys\nsys.argv = ["report.py", "--help"]\ntry:\n'
        '    runpy.run_path("tools/report.py", run_name="__main__")\n'
        'finally:\n    print("torch" in sys.modules)\n'
    )
    out = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert '--tokenizer-dir' in out.stdout and out.stdout.strip().endswith('False')
