"""The environment check, on faked and on real environments."""

import importlib.util
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

PATH = Path(__file__).parents[2] / 'tools' / 'doctor.py'
spec = importlib.util.spec_from_file_location('doctor', PATH)
doctor = importlib.util.module_from_spec(spec)
spec.loader.exec_module(doctor)

ONEDL = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmpretrain': '1.3.6',
    'onedl-mmsegmentation': '1.4.2',
    'onedl-mmdetection': '3.5.1',
}
MAINLINE = {
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmpretrain': '1.2.0',
    'mmsegmentation': '1.2.2',
    'mmdet': '3.3.0',
}
BASE = {
    'torch': '2.12.1+cpu',
    'torchvision': '0.27.1+cpu',
    'timm': '1.0.31',
    'scipy': '1.17.1',
    'opencv-python': '4.12.0.88',
    'setuptools': '80.9.0',
}


@pytest.fixture
def environment(monkeypatch):
    """Fake the distributions, the errors of imports, and the modules that are absent."""

    def fake(distributions, broken=None, absent=()):
        def version(name):
            if name in distributions:
                return distributions[name]
            raise metadata.PackageNotFoundError(name)

        broken = broken or {}
        monkeypatch.setattr(metadata, 'version', version)
        monkeypatch.setattr(doctor, 'import_error', lambda module: broken.get(module, ''))
        found = lambda name: None if name in absent else object()  # noqa: E731
        monkeypatch.setattr(doctor.importlib.util, 'find_spec', found)

    return fake


def levels(lines):
    return {name: level for level, name, _ in lines}


def text_of(lines, name):
    return next(text for _, line_name, text in lines if line_name == name)


def test_clean_onedl(environment):
    environment(BASE | ONEDL)
    lines = list(doctor.check_openmmlab())
    assert set(levels(lines).values()) == {'OK'}
    assert ('OK', 'mmdet (onedl-mmdetection)', '3.5.1') in lines
    assert [name.split()[0] for _, name, _ in lines] == [
        *('mmengine', 'mmcv', 'mmpretrain', 'mmseg', 'mmdet', 'setuptools')
    ]


def test_doubled(environment):
    environment(BASE | ONEDL | {'mmengine': '0.11.0'})
    lines = list(doctor.check_openmmlab())
    assert levels(lines)['mmengine'] == 'FAIL'
    text = text_of(lines, 'mmengine')
    assert 'pip uninstall -y onedl-mmengine mmengine' in text
    assert 'pip install "onedl-mmengine>=0.10.12"' in text


def test_mixed(environment):
    mixed = {k: v for k, v in (ONEDL | {'mmpretrain': '1.2.0'}).items() if k != 'onedl-mmpretrain'}
    environment(BASE | mixed)
    lines = list(doctor.check_openmmlab())
    assert levels(lines)['OpenMMLab'] == 'WARN'
    assert 'mixed with mainline mmpretrain;' in text_of(lines, 'OpenMMLab')
    assert levels(lines)['mmpretrain (mmpretrain)'] == 'OK'


def test_mainline_cannot_resume_and_needs_pkg_resources(environment):
    environment(BASE | MAINLINE, absent=['pkg_resources'])
    lines = list(doctor.check_openmmlab())
    assert levels(lines)['resume'] == levels(lines)['setuptools'] == 'WARN'
    assert 'setuptools<81' in text_of(lines, 'setuptools')
    assert 'OpenMMLab' not in levels(lines) and 'FAIL' not in levels(lines).values()
    environment(BASE | MAINLINE | {'torch': '2.5.1'})
    lines = list(doctor.check_openmmlab())
    assert 'resume' not in levels(lines) and levels(lines)['setuptools'] == 'OK'
    environment(BASE | MAINLINE | {'mmengine': '0.11.0'})
    assert 'resume' not in levels(doctor.check_openmmlab())


def test_pkg_resources_is_not_asked_for_with_onedl(environment):
    environment(BASE | ONEDL, absent=['pkg_resources'])
    assert levels(doctor.check_openmmlab())['setuptools'] == 'OK'
    environment(BASE | ONEDL, absent=['pkg_resources', 'distutils'])
    assert levels(doctor.check_openmmlab())['setuptools'] == 'FAIL'


def test_missing_required_and_optional(environment):
    environment(BASE)
    found = levels(doctor.check_openmmlab())
    assert [found[name] for name in ('mmengine', 'mmcv', 'mmpretrain')] == ['FAIL'] * 3
    assert [found[name] for name in ('mmseg', 'mmdet')] == ['WARN'] * 2
    text = text_of(doctor.check_openmmlab(), 'mmdet')
    assert text == 'not installed (optional); pip install "onedl-mmdetection>=3.5.1"'


def test_too_old_and_not_importable(environment):
    broken = {'mmdet': 'AssertionError: MMCV==2.3.6 is used but incompatible.'}
    environment(BASE | ONEDL | {'onedl-mmcv': '2.3.5'}, broken)
    lines = list(doctor.check_openmmlab())
    assert levels(lines)['mmcv (onedl-mmcv)'] == 'FAIL'
    assert '2.3.5 is older than 2.3.6' in text_of(lines, 'mmcv (onedl-mmcv)')
    assert levels(lines)['mmdet (onedl-mmdetection)'] == 'FAIL'
    assert 'incompatible' in text_of(lines, 'mmdet (onedl-mmdetection)')


@pytest.mark.parametrize(
    ('vision', 'error', 'level', 'expected'),
    [
        ('0.27.1+cpu', '', 'OK', 'matches torch 2.12.1+cpu'),
        ('0.28.0', '', 'WARN', 'torchvision==0.27.*'),
        ('0.28.0', 'RuntimeError: operator torchvision::nms does not exist', 'FAIL', '0.27.*'),
        ('0.27.1', 'RuntimeError: operator torchvision::nms does not exist', 'FAIL', 'same CUDA'),
        (None, '', 'FAIL', 'not installed; pip install "torchvision==0.27.*"'),
    ],
)
def test_torch_and_torchvision_pair(environment, vision, error, level, expected):
    distributions = {k: v for k, v in (BASE | {'torchvision': vision}).items() if v}
    environment(distributions, {'torchvision': error})
    [line] = doctor.check_torchvision()
    assert line[0] == level and expected in line[2] and error in line[2]


def test_versions_of_single_distributions(environment):
    environment(BASE | {'torch': '2.5.1', 'timm': '1.0.4'})
    [torch] = doctor.check_distribution('torch')
    [timm] = doctor.check_distribution('timm')
    assert torch == ('FAIL', 'torch', '2.5.1 is older than 2.6; pip install "torch>=2.6"')
    assert timm[0] == 'FAIL'
    environment(BASE, {'timm': 'OSError: broken'})
    [timm] = doctor.check_distribution('timm')
    assert timm[0] == 'FAIL' and 'OSError: broken' in timm[2]
    assert doctor.numbers('2.12.1+cu130') == (2, 12, 1) and doctor.numbers('2.6.0rc1') == (2, 6, 0)
    assert doctor.numbers(None) == ()


@pytest.mark.parametrize(
    ('running', 'level'),
    [((3, 9, 18), 'FAIL'), ((3, 10, 0), 'OK'), ((3, 12, 9), 'OK'), ((3, 13, 0), 'WARN')],
)
def test_python(running, level):
    [line] = doctor.check_python(running)
    assert line[0] == level


def test_oldest_versions_are_those_of_setup():
    oldest = doctor.MINIMUM
    assert {'torch', 'torchvision', 'timm', 'scipy', *ONEDL} <= set(oldest)
    assert (oldest['torch'], oldest['onedl-mmdetection']) == ('2.6', '3.5.1')


def test_opencv(environment):
    environment(BASE | {'opencv-python-headless': '4.10.0'})
    assert next(doctor.check_opencv())[0] == 'WARN'
    environment(BASE, {'cv2': 'ImportError: libGL.so.1: cannot open shared object file'})
    [line] = doctor.check_opencv()
    assert line[0] == 'FAIL' and 'libGL' in line[2] and 'headless' in line[2]


def test_ops_that_do_not_fit_this_torch(environment, monkeypatch):
    package = SimpleNamespace(__version__='0.1.0', install=lambda: False)
    monkeypatch.setattr(doctor.importlib, 'import_module', lambda name: package)
    environment(BASE | ONEDL, {'mmcv.ops': 'ImportError: undefined symbol'})
    lines = list(doctor.check_mcbeit())
    assert levels(lines) == {'mcbeit_mm': 'OK', 'mmcv ops': 'FAIL'}
    environment(BASE | ONEDL)
    assert text_of(doctor.check_mcbeit(), 'mmcv ops') == 'compiled'
    package.install = lambda: True
    assert 'torchvision' in text_of(doctor.check_mcbeit(), 'mmcv ops')
    environment(BASE | ONEDL, {'mcbeit_mm': "ModuleNotFoundError: No module named 'mcbeit_mm'"})
    [line] = doctor.check_mcbeit()
    assert line[0] == 'FAIL' and 'pip install -e .' in line[2]


def fake_torch(count, major=9, works=True):
    def ones(*args, **kwargs):
        if not works:
            raise RuntimeError('CUDA error: no kernel image is available\nmore')
        return SimpleNamespace(add=lambda x: SimpleNamespace(item=lambda: 2))

    device = SimpleNamespace(name='NVIDIA X', major=major, total_memory=80 * 2**30)
    cuda = SimpleNamespace(
        is_available=lambda: count > 0,
        device_count=lambda: count,
        get_device_properties=lambda index: device,
    )
    return SimpleNamespace(cuda=cuda, ones=ones, __version__='2.12.1')


@pytest.mark.parametrize(
    ('torch', 'driver', 'expected'),
    [
        (fake_torch(0), None, [('OK', 'CPU only')]),
        (fake_torch(0), '/usr/bin/nvidia-smi', [('WARN', 'sees no GPU')]),
        (fake_torch(2), '/usr/bin/nvidia-smi', [('OK', 'NVIDIA X, 80 GiB, bf16')] * 2),
        (fake_torch(1, major=7), None, [('OK', 'no bf16')]),
        (fake_torch(1, works=False), None, [('FAIL', 'no kernel image')]),
    ],
)
def test_gpu(environment, monkeypatch, torch, driver, expected):
    environment(BASE)
    monkeypatch.setattr(doctor.importlib, 'import_module', lambda name: torch)
    monkeypatch.setattr(doctor.shutil, 'which', lambda name: driver)
    lines = list(doctor.check_gpu())
    assert [level for level, _, _ in lines] == [level for level, _ in expected]
    assert all(part in line[2] for line, (_, part) in zip(lines, expected, strict=True))


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


def test_the_real_environment(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [str(PATH)])
    status = doctor.main()
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith('FAIL')]
    assert status == bool(failed), lines
    assert lines[-1].startswith(f'{len(failed)} FAIL, ')
    for name in ('Python', 'torch', 'torchvision', 'timm', 'mmengine', 'mmcv', 'mmpretrain'):
        assert any(line.startswith(f'OK    {name}') for line in lines), name


def test_an_empty_environment_is_reported_without_a_traceback():
    result = run('-S', '-E', str(PATH))  # no site-packages, no PYTHONPATH
    assert result.returncode == 1 and not result.stderr
    for name in ('torch', 'torchvision', 'timm', 'mmengine', 'mmcv', 'mmpretrain', 'mcbeit_mm'):
        assert f'FAIL  {name}: ' in result.stdout
    assert 'WARN  mmseg: ' in result.stdout and 'WARN  mmdet: ' in result.stdout


def test_help_does_not_import_torch():
    result = run('-X', 'importtime', str(PATH), '--help')
    assert result.returncode == 0 and 'usage' in result.stdout
    assert 'argparse' in result.stderr and '| torch' not in result.stderr


@pytest.mark.parametrize(
    'found, level', [('4.57.6', doctor.OK), ('5.23.0', doctor.WARN), (None, None)]
)
def test_transformers_of_version_5_are_named(environment, found, level):
    environment(BASE | ONEDL | ({'transformers': found} if found else {}))
    lines = list(doctor.check_transformers())
    assert [line[0] for line in lines] == ([level] if level else [])
