"""`make install`: pinned versions, a torch that is kept, the choice of the environment."""

import importlib.util
import runpy
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PINS = [
    Requirement(line)
    for line in (ROOT / 'constraints.txt').read_text().splitlines()
    if not line.startswith('#')
]


@pytest.fixture
def constraints(monkeypatch):
    """Return tools/constraints.py, which imports its neighbor doctor.py."""
    monkeypatch.syspath_prepend(ROOT / 'tools')
    spec = importlib.util.spec_from_file_location('constraints', ROOT / 'tools/constraints.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def interpreter(path, version, has_venv=True):
    """Write a fake Python that prints its version, makes a venv and records all other calls."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"""#!/bin/bash
case "$*" in
  *version_info*) echo {version} ;;
  *ensurepip*) exit {0 if has_venv else 1} ;;
  '-m venv '*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *) echo "$*" >>"$CALLS" ;;
esac
""")
    path.chmod(0o755)


def clone(tmp_path):
    """Copy what the scripts read to a directory without .venv."""
    for name in ('setup.py', 'constraints.txt', 'tools/environment.sh', 'tools/install.sh'):
        copy = tmp_path / 'clone' / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
        copy.chmod(0o755)
    return tmp_path / 'clone'


def run(tmp_path, script, **env):
    env = {'PATH': f'{tmp_path}/bin:/usr/bin:/bin', 'CALLS': f'{tmp_path}/calls', **env}
    command = [tmp_path / 'clone/tools' / script]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12'])
def test_constraints_pin_what_setup_requires(python, monkeypatch):
    metadata = {}
    monkeypatch.setattr('setuptools.setup', metadata.update)
    runpy.run_path(str(ROOT / 'setup.py'))
    applying = [p for p in PINS if not p.marker or p.marker.evaluate({'python_version': python})]
    pins = {pin.name: next(iter(pin.specifier)).version for pin in applying}
    assert len(pins) == len(applying), 'a package is pinned twice'
    for line in metadata['install_requires'] + metadata['extras_require']['all']:
        requirement = Requirement(line)
        assert pins[requirement.name] in requirement.specifier, line


def test_both_opencv_are_equal():
    versions = {str(pin.specifier) for pin in PINS if pin.name.startswith('opencv-python')}
    assert len(versions) == 1


@pytest.mark.parametrize('build', ['2.6.0+cu124', '2.11.0a0+eb65b36.nv26.2'])
def test_another_torch_is_kept_with_its_requirements(constraints, build, monkeypatch):
    requires = ['sympy==1.13.1', "typing_extensions>=4.10; python_version>='3.9'"]
    monkeypatch.setattr(constraints.metadata, 'requires', lambda name: requires)
    pair = {'torch': build, 'torchvision': '0.21.0+cu124'}
    lines = ['numpy==2.2.6', 'sympy==1.14.0', 'torch==2.12.1', 'torchvision==0.27.1']
    kept = constraints.keep(pair, [*lines, 'typing-extensions==4.16.0', 'torchmetrics==1.0'])
    expected = [f'torch=={build}', 'torchvision==0.21.0+cu124', 'numpy==2.2.6', 'torchmetrics==1.0']
    assert kept == expected


def test_the_pinned_torch_frees_nothing(constraints):
    lines = ['sympy==1.14.0', 'torch==2.12.1', 'torchvision==0.27.1']
    assert constraints.keep({'torch': '2.12.1', 'torchvision': '0.27.1'}, lines) == lines


def test_without_torch_all_pins_hold(constraints, monkeypatch, capsys):
    monkeypatch.setattr(constraints, 'version', lambda name: None)
    assert constraints.main() == 0
    assert capsys.readouterr().out == (ROOT / 'constraints.txt').read_text()


def test_a_pair_that_works_is_kept(constraints, capsys):
    assert constraints.main() == 0
    got = capsys.readouterr()
    for name in ('torch', 'torchvision'):
        assert f'{name} {constraints.version(name)}' in got.err
        assert f'\n{name}=={constraints.version(name)}\n' in f'\n{got.out}'


def test_a_pair_that_does_not_import_is_refused(constraints, monkeypatch, capsys):
    broken = {'torchvision': 'RuntimeError: operator torchvision::nms does not exist'}
    monkeypatch.setattr('doctor.import_error', lambda module: broken.get(module, ''))
    assert constraints.main() == 1
    got = capsys.readouterr()
    assert got.out == ''
    assert 'torchvision::nms does not exist' in got.err


def test_the_newest_python_makes_the_venv(tmp_path):
    root = clone(tmp_path)
    for name, version in (('3.12', '3.12.4'), ('3.11', '3.11.9'), ('3', '3.13.0')):
        interpreter(tmp_path / f'bin/python{name}', version)
    got = run(tmp_path, 'environment.sh')
    assert (got.returncode, got.stdout) == (0, f'{root}/.venv/bin/python\n')
    assert '3.12.4' in got.stderr
    again = run(tmp_path, 'environment.sh')
    assert (again.stdout, again.stderr) == (got.stdout, '')
    other = run(tmp_path, 'environment.sh', PYTHON='python3.11')
    assert other.returncode == 1
    assert 'delete .venv' in other.stderr


def test_no_python_fits(tmp_path):
    clone(tmp_path)
    interpreter(tmp_path / 'bin/python3.12', '3.12.4', has_venv=False)
    for name in ('3.11', '3.10', '3'):
        interpreter(tmp_path / f'bin/python{name}', '3.9.1')
    got = run(tmp_path, 'environment.sh')
    assert (got.returncode, got.stdout) == (1, '')
    for text in (
        'python3.12 (3.12.4) without venv',
        'python3 (3.9.1)',
        'apt install python3.12-venv',
    ):
        assert text in got.stderr
    assert len(got.stderr.splitlines()) == 1


@pytest.mark.parametrize('variable', ['VIRTUAL_ENV', 'CONDA_PREFIX'])
def test_the_active_environment_is_used(tmp_path, variable):
    root = clone(tmp_path)
    interpreter(tmp_path / 'active/bin/python', '3.11.9')
    got = run(tmp_path, 'environment.sh', **{variable: f'{tmp_path}/active'})
    assert (got.returncode, got.stdout) == (0, f'{tmp_path}/active/bin/python\n')
    assert not (root / '.venv').exists()
    interpreter(tmp_path / 'active/bin/python', '3.13.0')
    got = run(tmp_path, 'environment.sh', **{variable: f'{tmp_path}/active'})
    assert (got.returncode, got.stdout) == (1, '')
    assert '3.13.0; deactivate it' in got.stderr


def test_installs_once_until_something_changes(tmp_path):
    root = clone(tmp_path)
    interpreter(tmp_path / 'active/bin/python', '3.11.9')
    calls, env = tmp_path / 'calls', {'VIRTUAL_ENV': f'{tmp_path}/active'}

    def installed(**more):
        calls.write_text('')
        got = run(tmp_path, 'install.sh', **env, **more)
        assert got.returncode == 0, got.stderr
        return [line for line in calls.read_text().splitlines() if 'pip install' in line]

    assert [line.endswith(' -e .[all]') for line in installed()] == [True]
    assert installed() == []
    assert [line.endswith(' -e .[seg]') for line in installed(EXTRAS='seg')] == [True]
    assert installed(EXTRAS='seg') == []
    (root / 'constraints.txt').write_text('numpy==2.2.6\n')
    assert len(installed(EXTRAS='seg')) == 1
