"""Class folders and lists, correct and not; mmpretrain reads the written lists."""

import pytest
from PIL import Image

from mcbeit_mm.datasets.checks.imagenet import check_imagenet, read_list

CLASSES = ('n01', 'n02', 'n03')


@pytest.fixture
def root(tmp_path):
    for split, count in (('train', 4), ('val', 2)):
        for name in CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new('RGB', (16, 12)).save(tmp_path / split / name / f'{i}.jpg')
    return tmp_path


def put_list(root, split, order, extra=()):
    paths = sorted((root / split).rglob('*.jpg'))
    lines = [f'{p.relative_to(root / split)} {order.index(p.parent.name)}' for p in paths]
    (root / f'{split}_map.txt').write_text('\n'.join([*lines, *extra]) + '\n')
    return f'{split}_map.txt'


def put_lists(root, order):
    return {f'{split}_list': put_list(root, split, order) for split in ('train', 'val')}


def errors(report):
    return ' | '.join(report.errors)


def test_right_folders(root):
    report = check_imagenet(root)
    assert not report.errors
    assert report.facts == ['train: 12 images in 3 classes', 'val: 6 images in 3 classes']
    assert 'MCBEIT_CLASSES=3' in next(iter(report.notes))
    assert not check_imagenet(root, classes=3).notes
    assert 'expected 4' in errors(check_imagenet(root, classes=4))


def test_missing_and_nested_folder(root, tmp_path_factory):
    outer = tmp_path_factory.mktemp('outer')
    (outer / 'data').symlink_to(root)
    assert f'found one in {outer}/data' in errors(check_imagenet(outer))


def test_flat_val_is_explained(root):
    for name in CLASSES:
        for path in list((root / 'val' / name).iterdir()):
            path.rename(root / 'val' / f'ILSVRC2012_val_{name}_{path.name}')
        (root / 'val' / name).rmdir()
    assert 'no class folders. Move each image' in errors(check_imagenet(root))


def test_archives_and_empty_classes(root):
    (root / 'train/n04').mkdir()
    assert 'class folder without images' in errors(check_imagenet(root))
    (root / 'train/n05.tar').touch()
    assert 'unpack each' in errors(check_imagenet(root))


def test_class_in_one_split_only(root):
    (root / 'val/n03').rename(root / 'val/n04')
    report = check_imagenet(root)
    assert report.errors == {'class in train/ or val/ only': ['n03', 'n04']}


def test_incomplete_imagenet(tmp_path):
    for split in ('train', 'val'):
        for i in range(999):
            (tmp_path / split / f'n{i:08d}').mkdir(parents=True)
            (tmp_path / split / f'n{i:08d}' / 'a.jpg').touch()
    found = errors(check_imagenet(tmp_path, fast=True))
    assert 'train: 999 classes, expected 1000' in found
    assert 'val: 999 images, ImageNet-1k has 50000' in found


def test_lists(root):
    report = check_imagenet(root, **put_lists(root, CLASSES))
    assert not report.errors and not any('order' in note for note in report.notes)
    permuted = ('n02', 'n03', 'n01')
    lists = put_lists(root, permuted)
    report = check_imagenet(root, **lists)
    assert not report.errors and sum('not in sorted order' in note for note in report.notes) == 2
    put_list(root, 'val', CLASSES)
    assert 'one label to different classes' in errors(check_imagenet(root, **lists))


@pytest.mark.parametrize(
    'extra, error',
    [
        (['n01/none.jpg 0'], 'no such file'),
        (['n01/0.jpg 0'], 'given more than once'),
        (['n01/0.jpg 7'], '0..3'),
        (['n01/0.jpg 1'], 'one label for several folders'),
    ],
)
def test_wrong_lists(root, extra, error):
    train_list = put_list(root, 'train', CLASSES, extra)
    assert error in errors(check_imagenet(root, train_list=train_list))


def test_labels_from_one(root):
    train_list = put_list(root, 'train', ('', *CLASSES))
    assert 'labels start at 1, subtract it' in errors(check_imagenet(root, train_list=train_list))


@pytest.mark.parametrize('line', ['a.jpg', 'a.jpg x', 'a.jpg\t1', '1'])
def test_lines_of_another_form(tmp_path, line):
    (tmp_path / 'list.txt').write_text(f'b.jpg 0\n{line}\n')
    with pytest.raises(ValueError, match='line 2'):
        read_list(tmp_path / 'list.txt')


def test_flat_folder_with_a_list_and_an_order(root, tmp_path):
    for name in CLASSES:
        for path in list((root / 'val' / name).iterdir()):
            path.rename(root / 'val' / f'{name}_{path.name}')
        (root / 'val' / name).rmdir()
    order = ['n02', 'n03', 'n01']
    lines = [f'{p.name} {order.index(p.name[:3])}' for p in sorted((root / 'val').iterdir())]
    (root / 'val_map.txt').write_text('\n'.join(lines))
    lists = dict(train_list=put_list(root, 'train', order), val_list='val_map.txt')
    out, order_file = tmp_path / 'lists', tmp_path / 'order.txt'
    order_file.write_text('\n'.join(order))
    report = check_imagenet(root, **lists, label_order=order_file, write_lists=out)
    assert not report.errors
    assert (out / 'val.txt').read_text().splitlines()[0] == 'n01_0.jpg 0'
    order_file.write_text('n03 n02 n01')
    wrong = check_imagenet(root, **lists, label_order=order_file)
    assert 'folder differs from the label order' in errors(wrong)


def test_written_lists_run_in_mmpretrain(root, tmp_path):
    from mmpretrain.datasets import CustomDataset

    (root / 'train/n02/3.jpg').write_bytes(b'')
    permuted = ('n02', 'n03', 'n01')
    report = check_imagenet(root, **put_lists(root, permuted), write_lists=root / 'lists')
    assert 'empty file' in errors(report)
    assert (root / 'lists/classes.txt').read_text().split() == list(CLASSES)
    assert (root / 'lists/label_order.txt').read_text().split() == list(permuted)
    place = dict(data_root=str(root), data_prefix='train')
    dataset = CustomDataset(
        **place, ann_file='lists/train.txt', classes=str(root / 'lists/classes.txt')
    )
    folders = CustomDataset(**place)
    expected = {d['img_path']: d['gt_label'] for d in folders}
    del expected[str(root / 'train/n02/3.jpg')]
    assert {d['img_path']: d['gt_label'] for d in dataset} == expected
    assert dataset.CLASSES == CLASSES
    # The lists as they come need no conversion either.
    as_given = CustomDataset(**place, ann_file='train_map.txt')
    assert {d['gt_label'] for d in as_given if '/n02/' in d['img_path']} == {0}


def test_no_lists_from_a_wrong_layout(root):
    (root / 'val/n03').rename(root / 'val/n04')
    report = check_imagenet(root, write_lists=root / 'lists')
    assert 'no lists written' in report.facts[-1] and not (root / 'lists').exists()
