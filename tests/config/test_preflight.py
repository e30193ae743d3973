"""Mistakes that would surface minutes into a run are found before it starts."""

import pytest
import torch
from config_files import load
from PIL import Image

from mcbeit_mm.config import preflight

CONFIG = 'pretrain/mcbeit_vit-base-p16_16xb128-amp-coslr-800e_in1k.py'


@pytest.fixture
def cfg():
    cfg = load(CONFIG)
    sizes = dict(ddconfig=dict(ch_mult=[1, 1, 2, 4]), n_embed=8192, embed_dim=256)
    cfg.model.target_generator = dict(type='GumbelVQGANTokenizer', **sizes)  # no file to look for
    return cfg


@pytest.fixture
def ready(cfg, tmp_path):
    """The config with data and a precision that every machine supports."""
    one_photo(tmp_path / 'train')
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    cfg.optim_wrapper.type = 'OptimWrapper'
    return cfg


def one_photo(folder):
    folder.mkdir(parents=True)
    Image.new('RGB', (32, 32)).save(folder / 'photo.png')


def test_missing_data_folder(cfg, tmp_path):
    cfg.optim_wrapper.type = 'OptimWrapper'
    with pytest.raises(FileNotFoundError, match='MCBEIT_DATA'):
        preflight.check_before_run(cfg)
    one_photo(tmp_path / 'train')
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    preflight.check_before_run(cfg)
    cfg.load_from = str(tmp_path / 'none.pth')
    with pytest.raises(FileNotFoundError, match='load_from: no file'):
        preflight.check_before_run(cfg)


def test_folder_without_images(cfg, tmp_path):
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train/notes.txt').touch()
    with pytest.raises(FileNotFoundError, match='no image .* in '):
        preflight.check_before_run(cfg)
    one_photo(tmp_path / 'train/deep')
    preflight.check_before_run(cfg)


def test_testing_asks_for_no_training_data(cfg):
    preflight.check_before_run(cfg, testing=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason='fp16 works on this machine')
def test_fp16_without_gpu_is_refused(cfg, tmp_path):
    one_photo(tmp_path / 'train')
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    with pytest.raises(ValueError, match='--precision bf16'):
        preflight.check_before_run(cfg)
    preflight.check_before_run(cfg, checking=True)


def test_missing_weights_and_lists_are_found_before_the_run(cfg, tmp_path):
    one_photo(tmp_path / 'train')
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    cfg.optim_wrapper.type = 'OptimWrapper'
    preflight.check_before_run(cfg)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='nowhere.pth')
    with pytest.raises(FileNotFoundError, match='no file nowhere.pth; set MCBEIT_WEIGHTS=FILE'):
        preflight.check_before_run(cfg)
    cfg.model.backbone.init_cfg = None
    cfg.train_dataloader.dataset.metainfo = dict(classes=f'{tmp_path}/classes.txt')
    with pytest.raises(FileNotFoundError, match=f'no class list {tmp_path}/classes.txt'):
        preflight.check_before_run(cfg)
    cfg.train_dataloader.dataset.metainfo = dict(classes=('a', 'b'))
    cfg.train_dataloader.dataset.ann_file = 'lists/train.txt'
    with pytest.raises(FileNotFoundError, match=f'no annotation file {tmp_path}/lists/train.txt'):
        preflight.check_before_run(cfg)


def test_missing_annotations_of_the_evaluator_are_found(cfg, tmp_path):
    one_photo(tmp_path / 'val')
    cfg.val_dataloader = dict(dataset=dict(data_root=str(tmp_path), data_prefix='val'))
    cfg.train_dataloader = None
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.val_evaluator = dict(type='CocoMetric', ann_file=str(tmp_path / 'val.json'))
    with pytest.raises(FileNotFoundError, match='evaluator: no annotation file .*val.json'):
        preflight.check_before_run(cfg)


def test_initial_weights_may_be_pinned_or_have_an_address(ready, tmp_path):
    pin = '#sha256=' + 64 * 'a'
    ready.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=f'{tmp_path}/no.pth{pin}')
    with pytest.raises(FileNotFoundError, match='no.pth'):
        preflight.check_before_run(ready)
    (tmp_path / 'no.pth').touch()
    preflight.check_before_run(ready)
    ready.model.backbone.init_cfg.checkpoint = 'https://nowhere.org/x.pth'
    ready.load_from = f'{tmp_path}/no.pth{pin}'
    preflight.check_before_run(ready)
    ready.load_from = f'{tmp_path}/other.pth{pin}'
    with pytest.raises(FileNotFoundError, match='load_from: no file .*other.pth'):
        preflight.check_before_run(ready)


def test_a_resumed_run_needs_no_initial_weights(ready):
    ready.model.backbone.init_cfg = [dict(type='Pretrained', checkpoint='nowhere.pth')]
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        preflight.check_before_run(ready)
    ready.resume = True
    preflight.check_before_run(ready)


def test_all_checks_are_called(ready, tmp_path, capsys):
    """One mistake per check; their own tests have the cases."""
    ready.work_dir = str(tmp_path / 'work')
    preflight.check_before_run(ready)
    assert 'the learning rate is for 2048' in capsys.readouterr().err
    for node, key, value, message in [
        (ready.model.head, 'tua', 4.0, 'did you mean tau'),
        (ready.train_cfg, 'max_epochs', 300, 'ends at 800, training at train_cfg.max_epochs=300'),
        (ready.train_dataloader.dataset.pipeline[2], 'second_size', 64, 'set second_size=112'),
    ]:
        before = dict(node)
        node[key] = value
        with pytest.raises(ValueError, match=message):
            preflight.check_before_run(ready)
        node.clear()
        node.update(before)
    assert not (tmp_path / 'work').exists()
