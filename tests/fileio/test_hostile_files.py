"""No file executes code, whichever setting or function takes it.

Every test asserts that the payload has not created its mark file. The first tests are controls: the
payloads create it when unpickled without restrictions.
"""

import contextlib
import functools
import io
import pickle
import runpy
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, TINY_VQGAN
from hostile_files import FORMATS, Payload, payloads
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.runner import checkpoint as mmengine_checkpoint

import mcbeit_mm  # noqa: F401
from mcbeit_mm.checkpoint import load_weights
from mcbeit_mm.errors import SetupError
from mcbeit_mm.fileio.pins import sha256_of
from mcbeit_mm.weights.reading import read_checkpoint

KINDS = list(payloads(Path('mark')))
EXPECTED = (SetupError, ValueError, yaml.YAMLError)  # errors that may refuse a file


@pytest.fixture
def mark(tmp_path):
    """The file that a payload creates; fails the test if it exists afterwards."""
    path = tmp_path / 'mark'
    yield path
    assert not path.exists(), 'the payload ran'


def save(kind, mark, file, how='zip', state_dict=None, **entries):
    """Write a checkpoint with the payload in every entry that MMEngine reads."""
    payload = payloads(mark)[kind]
    content = dict(
        state_dict={'linear.weight': torch.ones(1, 2), 'linear.bias': torch.ones(1)},
        optimizer=dict(state={}, param_groups=[payload]),
        message_hub=dict(runtime_info=dict(x=payload), log_scalars={}, resumed_keys={}),
        meta=dict(epoch=0, iter=0, x=payload, config=f'open({str(mark)!r}, "w").close()'),
    )
    content |= {} if state_dict is None else {'state_dict': state_dict}
    FORMATS[how](content | entries, file)
    return str(file)


def assert_harmless(function, *arguments, **keywords):
    """Run a function that may refuse the file with one of the expected errors."""
    with contextlib.suppress(*EXPECTED):
        function(*arguments, **keywords)
        return True
    return False


# Controls


@pytest.mark.parametrize('kind', KINDS)
def test_payloads_run_when_unpickled(tmp_path, kind):
    file, mark = tmp_path / 'x.pkl', tmp_path / 'mark'
    file.write_bytes(pickle.dumps(payloads(mark)[kind]))
    assert not mark.exists()
    with contextlib.suppress(Exception), file.open('rb') as opened:
        pickle.load(opened)
    assert mark.exists()


@pytest.mark.parametrize('how', ['zip', 'legacy', 'pickle', 'tar'])
def test_formats_run_when_loaded_without_weights_only(tmp_path, how):
    mark = tmp_path / 'mark'
    FORMATS[how](payloads(mark)['exec'], tmp_path / 'x.pth')
    with contextlib.suppress(Exception):
        torch.load(tmp_path / 'x.pth', weights_only=False)
    assert mark.exists()


# Readers


@pytest.mark.parametrize('how', FORMATS)
@pytest.mark.parametrize('kind', KINDS)
def test_readers(mark, tmp_path, kind, how):
    file = save(kind, mark, tmp_path / 'x.pth', how)
    assert_harmless(read_checkpoint, file)
    assert_harmless(mmengine_checkpoint._load_checkpoint, file, map_location='cpu')
    assert_harmless(load_weights, torch.nn.Linear(2, 2), file)
    FORMATS[how](payloads(mark)[kind], tmp_path / 'bare.pth')
    assert_harmless(read_checkpoint, tmp_path / 'bare.pth')
    assert_harmless(mmengine_checkpoint._load_checkpoint, str(tmp_path / 'bare.pth'))


@pytest.mark.parametrize('kind', KINDS)
def test_object_stores(mark, tmp_path, kind):
    """MMEngine passes bytes from Ceph, S3 or Pavi to `_safe_torch_load`."""
    file = Path(save(kind, mark, tmp_path / 'x.pth'))
    with pytest.raises(SetupError, match='download it and pass the file'):
        mmengine_checkpoint._safe_torch_load(io.BytesIO(file.read_bytes()))
    assert_harmless(mmengine_checkpoint._safe_torch_load, str(file))
    meta = dict(epoch=1, config=f'open({str(mark)!r}, "w").close()')
    torch.save(dict(state_dict={}, meta=meta), file)
    loaded = mmengine_checkpoint._safe_torch_load(io.BytesIO(file.read_bytes()))
    assert loaded['meta'] == dict(epoch=1)


@pytest.mark.parametrize('kind', KINDS)
def test_environment_cannot_disable_weights_only(mark, tmp_path, monkeypatch, kind):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    file = save(kind, mark, tmp_path / 'x.pth')
    assert_harmless(read_checkpoint, file)
    assert_harmless(mmengine_checkpoint._load_checkpoint, file, map_location='cpu')


# MMEngine's runner


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        y = self.linear(torch.stack(inputs))
        return {'loss': y.square().mean()} if mode == 'loss' else [y]


class Count(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return {'count': len(results)}


def runner_of(work_dir, **settings):
    loader = dict(
        dataset=[dict(inputs=torch.ones(2))] * 2,
        batch_size=1,
        sampler=dict(type='DefaultSampler', shuffle=False),
    )
    return Runner(
        Line(),
        str(work_dir),
        train_dataloader=loader,
        test_dataloader=loader,
        test_evaluator=dict(type=Count),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        test_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        experiment_name=work_dir.name,
        log_level='ERROR',
        **settings,
    )


@pytest.mark.parametrize('kind', ['exec', 'bytes of torch', 'object array', 'module'])
def test_load_from(mark, tmp_path, kind):
    file = save(kind, mark, tmp_path / 'x.pth')
    assert_harmless(runner_of(tmp_path / 'train', load_from=file).train)
    assert_harmless(runner_of(tmp_path / 'test', load_from=file).test)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A checkpoint after the first of two epochs."""
    work_dir = tmp_path_factory.mktemp('trained')
    runner_of(work_dir).train()
    return work_dir / 'epoch_1.pth'


@pytest.mark.parametrize('kind', ['exec', 'getattr chain', 'scalar', 'module'])
def test_resume(mark, tmp_path, trained, kind):
    """A real checkpoint with payloads and a config that MMEngine would execute."""
    content = torch.load(trained, weights_only=False)
    payload = payloads(mark)[kind]
    content['meta'] |= dict(config=f'open({str(mark)!r}, "w").close()', x=payload)
    content['message_hub']['runtime_info']['x'] = payload
    content['optimizer']['x'] = payload
    torch.save(content, tmp_path / 'x.pth')
    runner = runner_of(tmp_path / 'run', load_from=str(tmp_path / 'x.pth'), resume=True)
    if assert_harmless(runner.train):
        assert runner.iter == 4


def test_pinned_runs(tmp_path, trained):
    good, bad = (f'{trained}#sha256={digest}' for digest in (sha256_of(trained), 'ab' * 32))
    runner = runner_of(tmp_path / 'good', load_from=good, resume=True)
    runner.train()
    assert runner.iter == 4
    for resume in (True, False):
        runner = runner_of(tmp_path / f'bad{resume}', load_from=bad, resume=resume)
        with pytest.raises(SetupError, match='expected abab'):
            runner.train()


def test_meta_config_alone(mark, tmp_path, trained):
    content = torch.load(trained, weights_only=False)
    content['meta']['config'] = f'open({str(mark)!r}, "w").close()'
    torch.save(content, tmp_path / 'x.pth')
    runner = runner_of(tmp_path / 'run', load_from=str(tmp_path / 'x.pth'), resume=True)
    runner.train()
    assert runner.iter == 4  # it resumed


# Models


def test_init_cfg(mark, tmp_path):
    from mmdet.models.backbones import SwinTransformer
    from mmseg.models.backbones import VisionTransformer

    file = save('exec', mark, tmp_path / 'x.pth', state_dict={'backbone.w': torch.ones(1)})
    init_cfg = ConfigDict(type='Pretrained', checkpoint=file)
    arch = dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=8)
    ours = dict(type='MCBEiTViT', arch=arch, img_size=32, patch_size=16)
    assert_harmless(MODELS.build(ours | dict(init_cfg=init_cfg)).init_weights)
    beit = dict(type='mmpretrain.BEiTViT', arch=arch, img_size=32, patch_size=16)
    assert_harmless(MODELS.build(beit | dict(init_cfg=init_cfg)).init_weights)
    assert_harmless(
        MODELS.build(beit | dict(init_cfg=dict(init_cfg, prefix='backbone.'))).init_weights
    )
    vit = VisionTransformer(32, embed_dims=8, num_layers=1, num_heads=2, init_cfg=init_cfg)
    assert_harmless(vit.init_weights)
    swin = SwinTransformer(
        embed_dims=8, depths=(1,) * 4, num_heads=(1,) * 4, window_size=2, init_cfg=init_cfg
    )
    assert_harmless(swin.init_weights)


def test_get_model(mark, tmp_path):
    from mmpretrain import get_model

    file = save('exec', mark, tmp_path / 'x.pth')
    arch = dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=8)
    backbone = dict(type='BEiTViT', arch=arch, img_size=32, patch_size=16)
    cfg = Config(dict(model=dict(type='ImageClassifier', backbone=backbone)))
    assert_harmless(get_model, cfg, pretrained=file)


@pytest.mark.parametrize('kind', ['exec', 'partial', 'rebuilt tensor'])
@pytest.mark.parametrize('how', ['zip', 'legacy', 'pickle'])
def test_tokenizers(mark, tmp_path, kind, how):
    from mcbeit_mm import tokenizers

    file = save(kind, mark, tmp_path / 'x.pkl', how)
    arch = dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=8)
    for tokenizer, sizes in (
        (tokenizers.GumbelVQGANTokenizer, TINY_VQGAN),
        (tokenizers.EMAVQGANTokenizer, TINY_VQGAN),
        (tokenizers.DiscreteVAETokenizer, dict(num_tokens=4, codebook_dim=4, hidden_dim=4)),
        (tokenizers.DALLETokenizer, dict(n_hid=4, vocab_size=4)),
        (tokenizers.VQKDTokenizer, dict(arch=arch, img_size=32, n_embed=4, embed_dim=4)),
    ):
        with pytest.raises(ValueError):
            tokenizer(**sizes, checkpoint=file)


def test_tokenizer_yaml(mark, tmp_path):
    from mcbeit_mm.tokenizers import GumbelVQGANTokenizer

    (tmp_path / 'model.yaml').write_text(f'model: !!python/object/apply:os.system [touch {mark}]')
    with pytest.raises(ValueError):
        GumbelVQGANTokenizer(checkpoint=tmp_path)


def test_perceptual_weights(mark, tmp_path):
    from torchvision.models import vgg16

    from mcbeit_mm.tokenizers.training.perceptual import PerceptualLoss

    file = save('exec', mark, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match='no features.0.weight'):
        PerceptualLoss(file)
    with torch.device('meta'):
        state = vgg16().features.state_dict()
    state = {f'features.{k}': torch.zeros(v.shape) for k, v in state.items()}
    torch.save(state, tmp_path / 'vgg.pth')
    with pytest.raises(ValueError, match='no lin0.weight'):
        PerceptualLoss(tmp_path / 'vgg.pth', file)


# Tools


@pytest.mark.parametrize('how', FORMATS)
def test_convert_checkpoint(mark, tmp_path, monkeypatch, how):
    file = save('exec', mark, tmp_path / 'x.pth', how)
    arguments = ['convert_checkpoint.py', file, str(tmp_path / 'out.pth'), '--to', 'timm']
    monkeypatch.setattr(sys, 'argv', arguments)
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(ROOT / 'tools' / 'convert_checkpoint.py'), run_name='__main__')


@pytest.mark.parametrize('how', FORMATS)
def test_evaluate_features(mark, tmp_path, monkeypatch, capsys, how):
    meta = dict(cfg=f'model = dict(type=open({str(mark)!r}, "w").close())')
    save('exec', mark, tmp_path / 'x.pth', how, meta=meta)
    config = "model = dict(backbone=dict(type='MCBEiTViT'), data_preprocessor=dict(mean=0, std=1))"
    (tmp_path / 'run.py').write_text(config)
    arguments = ['evaluate_features.py', str(tmp_path), '--data', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', arguments)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / 'tools' / 'evaluate_features.py'), run_name='__main__')
    assert stop.value.code == 2 and 'error: ' in capsys.readouterr().err


# URLs


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def address(tmp_path, monkeypatch):
    """URL of a server of tmp_path/served; the download cache is in tmp_path too."""
    (tmp_path / 'served').mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    handler = functools.partial(_Handler, directory=str(tmp_path / 'served'))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize('how', FORMATS)
def test_urls_and_model_names(mark, tmp_path, monkeypatch, address, how):
    save('exec', mark, tmp_path / 'served' / 'x.pth', how)
    urls = {'x': f'{address}/x.pth'}
    for zoo in ('get_torchvision_models', 'get_external_models', 'get_mmcls_models'):
        monkeypatch.setattr(mmengine_checkpoint, zoo, lambda: dict(urls))
    prefixes = ('torchvision://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'mmcls://')
    for name in (urls['x'], *(f'{prefix}x' for prefix in prefixes)):
        assert_harmless(mmengine_checkpoint._load_checkpoint, name, map_location='cpu')
    cached = list((tmp_path / 'torch').rglob('*-x.pth'))
    assert len(cached) == 1  # downloaded once


def test_pinned_url(tmp_path, address):
    file = tmp_path / 'served' / 'x.pth'
    torch.save({'state_dict': {'w': torch.ones(2)}}, file)
    good, bad = sha256_of(file), 'ab' * 32
    with pytest.raises(SetupError, match='invalid hash.*pass its path'):
        mmengine_checkpoint._load_checkpoint(f'{address}/x.pth#sha256={bad}')
    assert not [path for path in (tmp_path / 'torch').rglob('*') if path.is_file()]
    loaded = mmengine_checkpoint._load_checkpoint(f'{address}/x.pth#sha256={good}')
    assert torch.equal(loaded['state_dict']['w'], torch.ones(2))
    with pytest.raises(SetupError, match=f'{good}, expected {bad}'):  # from the cache
        mmengine_checkpoint._load_checkpoint(f'{address}/x.pth#sha256={bad}')
    with pytest.raises(SetupError, match='none.pth.*404'):
        mmengine_checkpoint._load_checkpoint(f'{address}/none.pth')


def test_one_name_on_two_hosts(tmp_path, address):
    """The cache must not confuse files of one name from different hosts."""
    (tmp_path / 'served' / 'other').mkdir()
    for folder, value in (('', 1), ('other/', 2)):
        torch.save({'w': torch.tensor(value)}, tmp_path / 'served' / f'{folder}x.pth')
    for folder, value in (('', 1), ('other/', 2)):
        loaded = mmengine_checkpoint._load_checkpoint(f'{address}/{folder}x.pth')
        assert loaded['w'] == value


# Annotation files


@pytest.mark.parametrize('suffix', ['pkl', 'pickle'])
@pytest.mark.parametrize('kind', KINDS)
def test_annotations(mark, tmp_path, kind, suffix):
    file = tmp_path / f'x.{suffix}'
    content = dict(metainfo={}, data_list=[dict(img_path='x.jpg', x=payloads(mark)[kind])])
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(SetupError, match='refused a pickle file'):
        BaseDataset(ann_file=str(file))


def test_yaml_annotations(mark, tmp_path):
    (tmp_path / 'x.yaml').write_text(f'!!python/object/apply:os.system [touch {mark}]')
    with pytest.raises(yaml.YAMLError, match='python/object'):
        BaseDataset(ann_file=str(tmp_path / 'x.yaml'))


def test_proposals(mark, tmp_path):
    from mmdet.datasets import CocoDataset

    (tmp_path / 'x.pkl').write_bytes(pickle.dumps({'x.jpg': payloads(mark)['exec']}))
    (tmp_path / 'x.json').write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(SetupError, match='pickle file'):
        CocoDataset(
            ann_file=str(tmp_path / 'x.json'), proposal_file=str(tmp_path / 'x.pkl'), pipeline=[]
        )


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_annotations_are_read(tmp_path, protocol):
    boxes = np.arange(8, dtype='>f4').reshape(2, 4)
    sample = dict(
        img_path='x.jpg',
        boxes=boxes,
        score=np.float64(0.5),
        ids={1, 2},
        raw=b'\xff',
        ok=np.bool_(1),
    )
    content = dict(metainfo=dict(classes=('a', 'b')), data_list=[sample] * 2)
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(content, protocol=protocol))
    data = BaseDataset(ann_file=str(tmp_path / 'x.pkl'), serialize_data=False)
    got = data.get_data_info(1)
    assert np.array_equal(got['boxes'], boxes) and got['boxes'].dtype.kind == 'f'
    assert {key: got[key] for key in sample if key != 'boxes'} == {
        key: value for key, value in sample.items() if key != 'boxes'
    }


def test_refusal_names_the_foreign_class(tmp_path):
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(Payload(print, 'x')))
    with pytest.raises(SetupError, match='builtins.print, which is not data.*JSON'):
        BaseDataset(ann_file=str(tmp_path / 'x.pkl'))
