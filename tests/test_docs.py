"""The documents name only files, options, config keys and Makefile targets that exist."""

import ast
import re
import shlex

import pytest
from conftest import ROOT
from mmengine.config import Config

from mcbeit_mm.config.checks.keys import check_option

DOCS = [ROOT / 'README.md', ROOT / 'configs/README.md', *sorted((ROOT / 'docs').glob('*.md'))]
SCRIPTS = {  # shell scripts pass the rest of their arguments on
    'dist_train.sh': 'train.py',
    'dist_test.sh': 'test.py',
    'slurm_train.sh': 'train.py',
}
TRANSFER = ('classification', 'segmentation', 'detection', 'pretrain')
KEY = re.compile(
    r'(?:model|\w+_dataloader|\w+_cfg|\w+_evaluator|optim_wrapper|default_hooks|auto_scale_lr)(?:\.\w+)+(?==)'
)
each_doc = pytest.mark.parametrize('doc', DOCS, ids=lambda path: path.name)


def options_of(tool):
    """Options that a Python tool adds to its parser."""
    calls = [n for n in ast.walk(ast.parse((ROOT / 'tools' / tool).read_text()))
             if isinstance(n, ast.Call)]  # fmt: skip
    words = [arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)]
    return {word for word in words if str(word).startswith('--')} | {'--help'}


def commands(doc):
    """Lines of indented code, continuation lines joined."""
    code = re.sub(r'\\\n\s*', ' ', doc.read_text())
    return [line.strip() for line in code.splitlines() if line.startswith('    ')]


def config_of(command):
    found = re.search(r'configs/[\w/.-]+\.py', command)
    return Config.fromfile(ROOT / found[0]) if found else None


@pytest.fixture(scope='module')
def configs():
    """A config of each kind that a key may belong to."""
    paths = [next(iter(sorted((ROOT / 'configs' / kind).glob('*.py'))), None) for kind in TRANSFER]
    return [Config.fromfile(path) for path in paths if path]


@each_doc
def test_files_exist(doc):
    text = doc.read_text()
    named = set(re.findall(r'\b(?:configs|tools|docs|mcbeit_mm|tests)/[\w/.-]+\.\w+', text))
    assert named
    missing = sorted(name for name in named if not (ROOT / name).is_file())
    assert not missing


@each_doc
def test_links_between_documents(doc):
    links = re.findall(r'\]\((?!https?:)([^)#]+)', doc.read_text())
    assert not [link for link in links if not (doc.parent / link).exists()]


@each_doc
def test_commands_use_options_that_exist(doc):
    for command in commands(doc):
        tool = re.search(r'tools/(\w+\.(?:py|sh))', command)
        if not tool:
            continue
        known = options_of(SCRIPTS.get(tool[1], tool[1]))
        words = shlex.split(command[tool.end() :], comments=True)
        assert not [w for w in words if w.startswith('--') and w.split('=')[0] not in known], (
            command
        )


@each_doc
def test_options_in_the_text_exist(doc):
    known = set().union(*(options_of(path.name) for path in (ROOT / 'tools').glob('*.py')))
    named = {word for span in re.findall(r'`([^`\n]+)`', doc.read_text())
             for word in re.findall(r'(?:^|\s)(--[\w-]+)', span)}  # fmt: skip
    assert named <= known | {'--no-build-isolation'}


@each_doc
def test_config_keys_resolve(doc, configs):
    for command in commands(doc):
        if '--cfg-options' not in command:
            continue
        cfg = config_of(command)
        for key in KEY.findall(command.split('--cfg-options')[1]):
            resolves(key, [cfg] if cfg else configs)
    for span in re.findall(r'`([^`\n]+)`', doc.read_text()):
        for key in KEY.findall(span):
            resolves(key, configs)


def resolves(key, candidates):
    errors = []
    for cfg in candidates:
        try:
            return check_option(cfg, key)
        except ValueError as error:
            errors.append(str(error))
    pytest.fail('\n'.join(errors))


@each_doc
def test_make_targets_exist(doc):
    targets = set(re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(), re.M))
    lines = commands(doc) + re.findall(r'`(make \w+)', doc.read_text())
    named = {found[1] for line in lines if (found := re.match(r'make (\w+)', line))}
    assert named <= targets


@each_doc
def test_example_configs_load(doc, tmp_path):
    for i, code in enumerate(re.findall(r'```python\n(_base_.*?)```', doc.read_text(), re.S)):
        base = re.search(r"_base_ = '\./([\w.-]+)'", code)[1]
        (folder,) = (p.parent for p in (ROOT / 'configs').glob(f'*/{base}'))
        path = tmp_path / f'example_{i}.py'
        path.write_text(code.replace('./', f'{folder}/'))
        cfg = Config.fromfile(path)
        assert cfg.train_dataloader.dataset.metainfo.classes == cfg.classes
        assert cfg.test_dataloader.dataset.metainfo.classes == cfg.classes


@each_doc
def test_prepare_data_layouts_exist(doc):
    tool = (ROOT / 'tools/prepare_data.py').read_text()
    layouts = set(re.findall(r"layouts\.add_parser\(\s*'(\w+)'", tool))
    named = re.findall(r'prepare_data\.py (\w+)', doc.read_text())
    assert set(named) <= layouts


@each_doc
def test_no_placeholders(doc):
    text = doc.read_text() if hasattr(doc, 'read_text') else (ROOT / doc).read_text()
    assert not re.search(r'\b(MEM|TRANSFER_RESULTS|TODO|TBD)\b', text)
