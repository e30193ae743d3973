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
}


@pytest.fixture
def environment(monkeypatch):
    """Fake the distributions and the errors of imports."""

    def fake(distributions, broken=None):
        def version(name):
            if name in distributions:
                return distributions[name]
            raise metadata.PackageNotFoundError(name)

        broken = broken or {}
        monkeypatch.setattr(metadata, 'version', version)
        monkeypatch.setattr(doctor, 'import_error', lambda module: broken.get(module, ''))

    return fake


def lines_of_packages():
    return [line for name in doctor.PACKAGES for line in doctor.check_package(name)]


def levels(lines):
    return {name: level for level, name, _ in lines}


def text_of(lines, name):
    return next(text for _, line_name, text in lines if line_name == name)


@pytest.mark.parametrize('family', [ONEDL, MAINLINE])
def test_a_clean_family(environment, family):
    environment(BASE | family)
    lines = lines_of_packages()
    assert set(levels(lines).values()) == {'OK'}
    assert [name.split()[0] for _, name, _ in lines] == list(doctor.PACKAGES)
    assert not list(doctor.check_families())
    if family is ONEDL:
        assert ('OK', 'mmdet (onedl-mmdetection)', '3.5.1') in lines


def test_doubled(environment):
    environment(BASE | ONEDL | {'mmengine': '0.11.0'})
    [(level, _, text)] = doctor.check_package('mmengine')
    assert level == 'FAIL'
    assert 'pip uninstall -y onedl-mmengine mmengine' in text
    assert 'pip install "onedl-mmengine>=0.10.12"' in text


def test_mixed(environment):
    mixed = {k: v for k, v in (ONEDL | {'mmpretrain': '1.2.0'}).items() if k != 'onedl-mmpretrain'}
    environment(BASE | mixed)
    [(level, name, text)] = doctor.check_families()
    assert (level, name) == ('WARN', 'OpenMMLab')
    assert 'mixed with mainline mmpretrain;' in text
    assert levels(lines_of_packages())['mmpretrain'] == 'OK'


def test_missing_required_and_optional(environment):
    environment(BASE)
    lines = lines_of_packages()
    found = levels(lines)
    assert [found[name] for name in ('mmengine', 'mmcv', 'mmpretrain')] == ['FAIL'] * 3
    assert [found[name] for name in ('mmseg', 'mmdet')] == ['WARN'] * 2
    expected = 'not installed (optional); pip install "onedl-mmdetection>=3.5.1"'
    assert text_of(lines, 'mmdet') == expected


def test_too_old_and_not_importable(environment):
    broken = {
        'mmdet': 'AssertionError: MMCV==2.3.6 is used but incompatible.',
        'timm': 'OSError: broken',
    }
    environment(BASE | ONEDL | {'onedl-mmcv': '2.3.5', 'torch': '2.5.1'}, broken)
    lines = lines_of_packages()
    assert ('FAIL', 'torch', '2.5.1 is older than 2.6; pip install "torch>=2.6"') in lines
    for name, text in (
        ('mmcv (onedl-mmcv)', '2.3.5 is older than 2.3.6'),
        ('mmdet (onedl-mmdetection)', 'incompatible'),
        ('timm', 'OSError: broken'),
    ):
        assert levels(lines)[name] == 'FAIL' and text in text_of(lines, name)
    assert doctor.numbers('2.12.1+cu130') == (2, 12, 1) and doctor.numbers('2.6.0rc1') == (2, 6, 0)


@pytest.mark.parametrize(
    ('torch', 'vision', 'expected'),
    [
        ('2.12.1+cpu', '0.27.1+cpu', []),
        ('2.12.1+cpu', '0.28.0', ['torchvision==0.27.*']),
        ('2.12.1+cpu', None, []),
        (None, '0.27.1', []),
        ('3.0.0', '0.27.1', []),  # unknown
    ],
)
def test_torch_and_torchvision_pair(environment, torch, vision, expected):
    found = {'torch': torch, 'torchvision': vision}
    environment({k: v for k, v in found.items() if v})
    lines = list(doctor.check_pair())
    assert len(lines) == len(expected)
    assert all(level == 'WARN' and expected[0] in text for level, _, text in lines)


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


def fake_torch(count, major=9):
    device = SimpleNamespace(name='NVIDIA X', major=major, total_memory=80 * 2**30)
    cuda = SimpleNamespace(
        is_available=lambda: count > 0,
        device_count=lambda: count,
        get_device_properties=lambda index: device,
    )
    return SimpleNamespace(cuda=cuda, __version__='2.12.1+cpu')


@pytest.mark.parametrize(
    ('torch', 'expected'),
    [
        (fake_torch(0), ['torch 2.12.1+cpu sees none']),
        (fake_torch(2), ['NVIDIA X, 80 GiB, bf16'] * 2),
        (fake_torch(1, major=7), ['no bf16']),
    ],
)
def test_gpu(environment, monkeypatch, torch, expected):
    environment(BASE)
    monkeypatch.setattr(doctor.importlib, 'import_module', lambda name: torch)
    lines = list(doctor.check_gpu())
    assert all(part in text for (_, _, text), part in zip(lines, expected, strict=True))
    environment(BASE, {'torch': 'OSError: libcudart.so'})
    assert not list(doctor.check_gpu())


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
