"""tools/report.py on a tiny pretraining run."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from fake_logs import features, scalars
from html_page import Page
from mmengine.config import Config
from PIL import Image
from tiny_models import ARCH, NORM, TOKENIZER, tiny

from mcbeit_mm.tokenizers import GumbelVQGANTokenizer
from mcbeit_mm.visualization.pretraining_run import image_folder, load_batches, load_run
from mcbeit_mm.visualization.report import write_report

TITLES = [
    'Accuracy of the frozen features', 'Training curves', 'Reconstructions',
    'Multi-choice targets', 'Tokenizer', 'Use of the codebook', 'About this run',
]  # fmt: skip


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('report_tool', ROOT / 'tools' / 'report.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save_tokenizer(path):
    sizes = (TOKENIZER['ddconfig'], TOKENIZER['n_embed'], TOKENIZER['embed_dim'])
    torch.save(dict(state_dict=GumbelVQGANTokenizer(*sizes).state_dict()), path)


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
    """What a pretraining run of a tiny model leaves, with 4 + 3 images."""
    tmp_path = tmp_path_factory.mktemp('pretraining')
    torch.manual_seed(0)
    for split, count in (('train', 4), ('val', 3)):
        folder = tmp_path / 'data' / split / 'a'
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = np.random.randint(0, 255, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f'{i}.png')
    save_tokenizer(tmp_path / 'tokenizer.pth')
    target_generator = dict(TOKENIZER, checkpoint=str(tmp_path / 'tokenizer.pth'))
    model = tiny(target_generator=target_generator)
    work_dir = tmp_path / 'run'
    for name, log in (('1', scalars(1, 4)), ('2', scalars(3, 6))):
        folder = work_dir / name / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text(''.join(json.dumps(entry) + '\n' for entry in log))
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
    # 3 images x 5 pictures, 6 targets, 4 charts, and one tile for each code that occurs
    used = int(re.search(r'The (\d+) most frequent codes', page.text)[1])
    assert len(page.pictures) == 15 + 6 + 4 + used
    assert str(run_dir.parent / 'data' / 'val') in page.texts  # rather than the training images
    assert f'{run_dir / "epoch_3.pth"}, epoch 3' in page.texts


def test_features_and_tokenizer_log_are_optional(run_dir):
    out = write_report(run_dir, num_images=1, device='cpu')
    assert out == run_dir / 'report.html'
    page = Page(out.read_text())
    assert page.titles == TITLES[1:]
    assert 'Measured on 1 images' in page.text and 'warm-up' not in page.text
    out.unlink()


def test_images_and_masks_are_the_same_every_time(run_dir):
    run = load_run(run_dir, None, 'cpu')
    (first,), (again,) = (load_batches(run, run_dir.parent / 'data', 4) for _ in range(2))
    assert len(first[1]) == 4 and first[1].any() and not first[1].all()
    for one, other in zip([*first[0], first[1]], [*again[0], again[1]], strict=True):
        assert torch.equal(one, other)


def test_the_method_in_one_picture(tool, run_dir, tmp_path, monkeypatch):
    before = sorted(run_dir.iterdir())
    run_tool(tool, monkeypatch, run_dir, '--method-figure', tmp_path / 'method.png')
    with Image.open(tmp_path / 'method.png') as picture:
        assert picture.width == 1800 and picture.height < 800
        assert len(set(picture.convert('RGB').getdata())) > 1000
    assert sorted(run_dir.iterdir()) == before  # no report


def test_pictures_come_from_the_given_folder(run_dir):
    data = run_dir.parent / 'data'
    cfg = Config.fromfile(run_dir / 'tiny.py')
    assert image_folder(cfg) == image_folder(cfg, data) == data / 'val'
    assert image_folder(cfg, data / 'train') == data / 'train'


def test_mistakes_are_one_line(tool, run_dir, tmp_path, monkeypatch, capsys):
    def error(*args):
        with pytest.raises(SystemExit) as stop:
            run_tool(tool, monkeypatch, *args)
        assert stop.value.code == 2
        text = capsys.readouterr().err.strip().splitlines()[-1]
        assert text.startswith('error: ')
        return text

    copy = tmp_path / 'run'
    shutil.copytree(run_dir, copy)
    (tmp_path / 'broken.json').write_text('{')
    (tmp_path / 'empty').mkdir()
    assert 'no training log' in error(tmp_path / 'empty')
    assert 'is not JSON' in error(copy, '--features', tmp_path / 'broken.json')
    assert 'nowhere' in error(copy, '--data', tmp_path / 'nowhere')
    assert 'no images in' in error(copy, '--data', tmp_path / 'empty')
    torch.save(dict(state_dict=dict(a=torch.zeros(1))), tmp_path / 'other.pth')
    assert 'does not fit the config' in error(copy, '--checkpoint', tmp_path / 'other.pth')
    torch.manual_seed(5)
    save_tokenizer(tmp_path / 'tokenizer.pth')
    other = f'model.target_generator.checkpoint={tmp_path}/tokenizer.pth'
    assert 'the run used tokenizer' in error(copy, '--cfg-options', other)
    (copy / 'tiny.py').unlink()
    assert 'no *.py in' in error(copy)


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
