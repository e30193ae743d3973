"""Import order of the package and location of the tests: the layout shown in the README."""

import ast
import graphlib
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / 'mcbeit_mm'
# A part imports itself and parts of the rows above it. The method never sees what is built on it.
ROWS = [
    {'errors', 'mmcv_ops', 'targets', 'fileio', 'layers'},
    {'losses', 'optim', 'weights', 'datasets'},
    {'transforms', 'backbone', 'detection', 'head', 'checkpoint', 'evaluation'},
    {'tokenizers'},
    {'mcbeit', 'cached_targets', 'config'},
    {'engine'},
    {'visualization'},
    {'ablation', 'apis'},
    {'cli', '__main__', '__init__'},
]
PLANNED = {'cli', '__main__'}  # a row is reserved, the files follow
METHOD = {
    *('transforms', 'tokenizers', 'backbone', 'targets', 'losses', 'head', 'mcbeit'),
    *('detection', 'optim', 'checkpoint', 'layers', 'weights', 'fileio', 'errors', 'mmcv_ops'),
}
TOOLKIT = {'config', 'engine', 'evaluation', 'visualization', 'ablation', 'cached_targets'}
# Tests of several modules at once.
EXTRA_TESTS = {
    '': {'docs', 'layout'},
    'engine': {'distributed'},
    'fileio': {'hostile_files'},
}
# Test folders without a folder of the package.
OTHER_TESTS = {'configs', 'faults', 'golden', 'tools'}


def part(file: Path) -> str:
    """Top-level module or folder of a file."""
    return file.relative_to(PACKAGE).parts[0].removesuffix('.py')


def row(file: Path) -> int:
    return next(i for i, parts in enumerate(ROWS) if part(file) in parts)


def file_of(parts: tuple[str, ...]) -> Path | None:
    path = PACKAGE.joinpath(*parts)
    return next((f for f in (path.with_suffix('.py'), path / '__init__.py') if f.is_file()), None)


@cache
def imports() -> dict[Path, set[Path]]:
    """Imported files by importing file, including imports within functions."""
    found = {}
    for file in sorted(PACKAGE.rglob('*.py')):
        package = file.relative_to(PACKAGE).parent.parts
        found[file] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [tuple(alias.name.split('.')) for alias in node.names]
                targets = [name[1:] for name in names if name[0] == 'mcbeit_mm']
            elif isinstance(node, ast.ImportFrom):
                module = tuple((node.module or '').split('.')) if node.module else ()
                if node.level:
                    module = (*package[: len(package) - node.level + 1], *module)
                elif module[:1] == ('mcbeit_mm',):
                    module = module[1:]
                else:
                    continue
                targets = [(*module, alias.name) for alias in node.names]
                targets = [t if file_of(t) else module for t in targets]
            else:
                continue
            found[file] |= {target for t in targets if (target := file_of(t))}
        found[file].discard(file)
    return found


def pairs() -> list[tuple[Path, Path]]:
    return [(file, target) for file, targets in imports().items() for target in targets]


def shown(bad: list[tuple[Path, Path]]) -> str:
    return '\n'.join(f'{a.relative_to(PACKAGE)} -> {b.relative_to(PACKAGE)}' for a, b in bad)


def test_the_reader_of_imports_sees_them():
    assert file_of(('losses',)) in imports()[file_of(('head',))]
    assert len(pairs()) > 150


def test_every_part_has_one_row():
    parts = {part(file) for file in PACKAGE.rglob('*.py')}
    assert parts == set.union(*ROWS) - PLANNED | (parts & PLANNED)
    assert sum(map(len, ROWS)) == len(set.union(*ROWS))


def test_imports_go_down():
    up = [
        (a, b)
        for a, b in pairs()
        if part(a) != part(b) and row(a) <= row(b) and not {part(a), part(b)} <= ROWS[0]
    ]
    assert not up, f'imports that go up or sideways:\n{shown(up)}'


def test_the_method_imports_no_toolkit():
    bad = [(a, b) for a, b in pairs() if part(a) in METHOD and part(b) in TOOLKIT]
    assert not bad, f'the method imports what is built on it:\n{shown(bad)}'


def test_no_circles():
    # A package's __init__ is imported before its files, so it is no dependency of theirs.
    graph = {a: {b for b in targets} for a, targets in imports().items()}
    graphlib.TopologicalSorter(graph).prepare()


def folders(root: Path) -> set[str]:
    return {
        str(path.relative_to(root))
        for path in root.rglob('*')
        if path.is_dir() and '__pycache__' not in path.parts
    }


def test_test_folders_mirror_the_package():
    tests = {f for f in folders(ROOT / 'tests') if Path(f).parts[0] not in OTHER_TESTS}
    assert tests == folders(PACKAGE)


@pytest.mark.parametrize('folder', sorted({''} | folders(PACKAGE)))
def test_test_files_are_named_after_modules(folder: str):
    modules = {f.stem for f in (PACKAGE / folder).glob('*.py')} - {'__init__'}
    tests = {f.stem.removeprefix('test_') for f in (ROOT / 'tests' / folder).glob('test_*.py')}
    extra = tests - modules - (EXTRA_TESTS.get(folder) or set())
    assert not extra, f'tests of no module of {folder}: {sorted(extra)}'
