"""Transfer sections of the report: numbers from the logs, nothing silently left out."""

import importlib.util
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from html_page import Page
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from tiny_transfer import ARCH, write_run

from mcbeit_mm.visualization import transfer_report
from mcbeit_mm.visualization.drawing import colors
from mcbeit_mm.visualization.transfer_pictures import samples_table
from mcbeit_mm.visualization.transfer_report import Comparison
from mcbeit_mm.visualization.transfer_runs import Outcome, TransferRun

DETECTION = {'coco/bbox_mAP': 0.251, 'coco/segm_mAP': 0.125}


def scratch_model():
    return dict(backbone=dict(type='MCBEiTViT', init_cfg=None))


@pytest.fixture
def comparisons(tmp_path):
    """Segmentation from pretrained weights and from scratch, detection without the latter's AP."""
    runs = {
        'pretrained': write_run(tmp_path / 'a', 'mmseg', {'mIoU': 33.25}),
        'from scratch': write_run(tmp_path / 'b', 'mmseg', {'mIoU': 40.0}, model=scratch_model()),
    }
    detection = {
        'pretrained': write_run(tmp_path / 'c', 'mmdet', DETECTION),
        'from scratch': write_run(tmp_path / 'd', 'mmdet', {}, model=scratch_model()),
    }
    return [Comparison('segmentation', runs), Comparison('detection', detection)]


def rows(html):
    texts = [text for text in Page(html).texts if text.strip()]
    return '|'.join(texts)


def test_table_holds_the_last_validations(comparisons):
    html = transfer_report.table_section(comparisons).html
    found = rows(html)
    assert 'last validation, %|pretrained|from scratch|difference' in found
    assert 'segmentation: mIoU|33.2|40.0|-6.8' in found  # scratch may win
    assert 'detection: box AP|25.1|missing|missing' in found
    assert 'detection: mask AP|12.5|missing|missing' in found


def test_what_is_missing_is_stated(comparisons):
    runs = list(comparisons[1].runs.values())
    found = transfer_report.compare(runs, 'cpu')  # there is no checkpoint
    assert not found.outcomes and len(found.problems) == 2
    for html in (
        transfer_report.table_section([found]).html,
        transfer_report.task_section(found).html,
    ):
        text = Page(html).text
        assert 'detection, pretrained: no checkpoint' in text
        assert 'detection, from scratch: no checkpoint' in text


def test_unequal_runs_are_called_unfair(tmp_path):
    runs = [
        write_run(tmp_path / 'a', 'mmseg', {'mIoU': 1.0}),
        write_run(tmp_path / 'b', 'mmseg', {'mIoU': 1.0}, train_cfg=dict(max_iters=20)),
    ]
    found = transfer_report.compare(runs, 'cpu')
    assert list(found.runs) == ['a', 'b']  # both pretrained: named after their folders
    assert 'not fair' in found.problems[-1] and 'train_cfg.max_iters' in found.problems[-1]
    other = write_run(tmp_path / 'c', 'mmdet', {})
    with pytest.raises(ValueError, match='only runs of the same task'):
        transfer_report.compare([runs[0], other], 'cpu')


def test_log_and_checkpoint_must_agree():
    outcome = Outcome(('a',), 10, {'mIoU': 33.0, 'top-1': 5.0, 'AP': 1.0}, {})
    found = list(transfer_report._disagreements('x', {'mIoU': 35.0, 'top-1': 5.1}, outcome, True))
    assert len(found) == 2
    assert 'ends with mIoU 35.0, the checkpoint gives 33.0' in found[0]
    assert 'no AP in the log' in found[1]


def test_many_classes_are_cut_to_those_that_differ_most():
    values = np.arange(100.0)
    outcomes = {
        name: Outcome(tuple(map(str, range(100))), 5, {}, {'IoU': per_class})
        for name, per_class in (('x', values), ('y', 50 * np.ones(100)))
    }
    html = transfer_report._per_class(Comparison('segmentation', {}, outcomes))
    assert '24 of 100 classes' in Page(html).text


def test_segmentation_samples_show_truth_and_models(tmp_path):
    from mmseg.structures import SegDataSample

    photo = tmp_path / 'x.png'
    Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(photo)
    outcomes = {}
    for label, name in enumerate(('pretrained', 'from scratch')):
        sample = SegDataSample(img_path=str(photo))
        sample.gt_sem_seg = PixelData(data=torch.full((1, 8, 8), 255))
        sample.pred_sem_seg = PixelData(data=torch.full((1, 8, 8), label))
        outcomes[name] = Outcome(('a', 'b'), 1, {}, {}, samples={str(photo): sample})
    page = Page(samples_table('segmentation', outcomes))
    image, truth, *guesses = page.pictures
    assert (image == 100).all() and (truth == 100).all()  # nothing but ignored pixels
    for picture, color in zip(guesses, colors(2), strict=True):
        np.testing.assert_allclose(picture, np.full((8, 8, 3), 40 + 0.6 * color), atol=0.51)
    assert [t for t in page.texts if t in ('a', 'b')] == ['a', 'b']


def test_detection_samples_leave_low_scores_out(tmp_path):
    from mmdet.structures import DetDataSample

    photo = tmp_path / 'x.png'
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(photo)
    sample = DetDataSample(metainfo=dict(img_path=str(photo)))
    boxes = torch.tensor([[10.0, 100, 60, 160], [200, 100, 260, 160]])
    masks = torch.zeros(2, 300, 300, dtype=torch.bool)
    sample.pred_instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([0, 1]), scores=torch.tensor([0.9, 0.05]), masks=masks
    )
    outcome = Outcome(('a', 'b'), 1, {}, {}, samples={str(photo): sample})
    page = Page(samples_table('detection', {'pretrained': outcome}))
    (picture,) = page.pictures
    assert (picture[100:160, 10] > 0).any() and not picture[:, 150:].any()
    assert 'missing' in page.texts  # the truth was not loaded


def classifier(root):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    dataset = dict(type='CustomDataset', data_root=str(root), data_prefix='val', pipeline=pipeline)
    return dict(
        default_scope='mmpretrain',
        model=dict(
            type='ImageClassifier',
            data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
            backbone=dict(
                type='MCBEiTViT', arch=ARCH, img_size=32, out_type='avg_featmap',
                init_cfg=dict(type='Pretrained', checkpoint='gone.pth'),
            ),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=32),
        ),
        val_dataloader=dict(
            batch_size=4, num_workers=2, persistent_workers=True, dataset=dataset,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
    )  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    """Two finished classification runs, which say 'b' for every image: 4 of 10 are."""
    for name, count in (('a', 6), ('b', 4)):
        (tmp_path / 'data/val' / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.randint(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'data/val' / name / f'{i}.png')
    init_default_scope('mmpretrain')
    cfg = classifier(tmp_path / 'data')
    folder = tmp_path / 'pretrained'
    write_run(folder, 'mmpretrain', {'accuracy/top1': 40.0}, **cfg)
    model = MODELS.build(Config(cfg).model)
    torch.nn.init.zeros_(model.head.fc.weight)
    model.head.fc.bias.data = torch.tensor([0.0, 1.0])
    torch.save(dict(state_dict=model.state_dict()), folder / 'epoch_1.pth')
    shutil.copytree(folder, tmp_path / 'scratch')
    cfg['model']['backbone']['init_cfg'] = None
    Config(Config.fromfile(folder / 'run.py').to_dict() | cfg).dump(tmp_path / 'scratch/run.py')
    return [folder, tmp_path / 'scratch']


def test_tool_reports_two_runs(runs, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location('report_tool', ROOT / 'tools' / 'report.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    out = tmp_path / 'out.html'
    options = ['--transfer', *map(str, runs), '--out', str(out), '--device', 'cpu']
    monkeypatch.setattr(sys, 'argv', ['report.py', *options])
    tool.main()
    assert str(out) in capsys.readouterr().out
    page = Page(out.read_text())
    assert page.titles == ['Transfer', 'Classification']
    assert 'classification: top-1|40.0|40.0|+0.0' in '|'.join(page.texts)
    assert 'Please note' not in page.text  # log and checkpoint agree
    assert len(page.pictures) == 6 + 3  # samples; curves, classes, confusions
    assert page.text.count('0.73') == 12  # sigmoid(1), of two models
    monkeypatch.setattr(sys, 'argv', ['report.py', *options, '--max-val', '5'])
    tool.main()
    assert 'On 5 validation images' in Page(out.read_text()).text


def test_outcome_of_a_run(runs):
    outcome = transfer_report.evaluate(TransferRun(runs[0]), 'cpu', num_samples=3)
    assert outcome.confusion.tolist() == [[0, 6], [0, 4]]
    assert outcome.metrics == {'top-1': 40.0} and outcome.num_images == 10
    assert outcome.per_class['accuracy'].tolist() == [0, 100]
    assert len(outcome.samples) == 3
