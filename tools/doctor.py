"""Check the environment: a line per requirement, with a remedy for what is broken.

Exit status 1 if a requirement is broken (FAIL). Needs only the standard library, and takes the
oldest versions from setup.py, so that it also runs where nothing is installed.
"""

from __future__ import annotations  # lets an old Python report that it is old

import argparse
import importlib
import re
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

OK, WARN, FAIL = 'OK', 'WARN', 'FAIL'
Line = tuple  # (level, requirement, finding and remedy)

SETUP = (Path(__file__).parents[1] / 'setup.py').read_text()
MINIMUM = dict(re.findall(r"'([\w-]+)>=([\d.]+)'", SETUP))  # distribution -> oldest version
PACKAGES = {  # module -> distributions that provide it, the supported one first
    'torch': ('torch',),
    'torchvision': ('torchvision',),
    'timm': ('timm',),
    'mmengine': ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
}
OPTIONAL = ('mmseg', 'mmdet')


def version(distribution: str) -> str | None:
    """Return the installed version, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def numbers(text: str | None) -> tuple[int, ...]:
    """Return the leading numbers of a version: '2.12.1+cpu' -> (2, 12, 1); None -> ()."""
    return tuple(int(n) for n in re.match(r'[\d.]*', text or '')[0].split('.') if n)


def import_error(module: str) -> str:
    """Return the first line of the exception that an import raises, or an empty string."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything
        return f'{type(error).__name__}: {error}'.splitlines()[0]
    return ''


def check_python(running: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Line]:
    level = FAIL if running < (3, 10) else WARN if running >= (3, 13) else OK
    remedy = '' if level == OK else '; use Python 3.10-3.12'
    yield level, 'Python', '.'.join(map(str, running)) + remedy


def check_package(module: str) -> Iterator[Line]:
    """Check that one distribution provides a module, its version, and the import."""
    names = PACKAGES[module]
    found = {name: version(name) for name in names if version(name)}
    remedy = f'pip install "{names[0]}>={MINIMUM[names[0]]}"'
    if not found:
        level, use = (WARN, ' (optional)') if module in OPTIONAL else (FAIL, '')
        yield level, module, f'not installed{use}; {remedy}'
        return
    if len(found) > 1:
        text = f'{" and ".join(found)} overwrite one another; pip uninstall -y {" ".join(found)}'
        yield FAIL, module, f'{text}, then {remedy}'
        return
    [(name, number)] = found.items()
    label = module if name == module else f'{module} ({name})'
    minimum = MINIMUM.get(name, '0')  # none for mainline
    if numbers(number) < numbers(minimum):
        yield FAIL, label, f'{number} is older than {minimum}; {remedy}'
    elif error := import_error(module):
        yield FAIL, label, f'{number} does not import ({error}); fix the cause or reinstall it'
    else:
        yield OK, label, number


def check_pair() -> Iterator[Line]:
    torch, vision = version('torch'), version('torchvision')
    if not vision or numbers(torch)[:1] != (2,):
        return
    minor = numbers(torch)[1] + 15  # torchvision 0.(n + 15) is built for torch 2.n
    if numbers(vision)[:2] != (0, minor):
        remedy = f'pip install "torchvision==0.{minor}.*" from the index of torch'
        yield WARN, 'torchvision', f'{vision} does not match torch {torch}; {remedy}'


def check_families() -> Iterator[Line]:
    found = [name for names in PACKAGES.values() for name in names if version(name)]
    onedl = [name for name in found if name.startswith('onedl-')]
    mainline = [name for name in found if name.startswith('mm')]
    if onedl and mainline:
        text = f'{", ".join(onedl)} mixed with mainline {", ".join(mainline)}; install one family'
        yield WARN, 'OpenMMLab', text


def check_mcbeit() -> Iterator[Line]:
    if error := import_error('mcbeit_mm'):
        remedy = 'fix the lines above, then pip install -e . in the repository'
        yield FAIL, 'mcbeit_mm', f'does not import ({error}); {remedy}'
        return
    yield OK, 'mcbeit_mm', importlib.import_module('mcbeit_mm').__version__
    served = importlib.import_module('mcbeit_mm.mmcv_ops').install()
    if error := import_error('mmcv.ops'):
        yield FAIL, 'mmcv ops', f'do not import ({error}); reinstall mmcv for this torch'
    else:
        text = 'nms and roi_align by torchvision; no other op' if served else 'compiled'
        yield OK, 'mmcv ops', text


def check_gpu() -> Iterator[Line]:
    if import_error('torch'):
        return
    torch = importlib.import_module('torch')
    if not torch.cuda.is_available():
        yield OK, 'GPU', f'torch {torch.__version__} sees none; the demo runs on a CPU'
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = 'bf16' if device.major >= 8 else 'no bf16: use fp16'
        yield OK, 'GPU', f'{device.name}, {device.total_memory / 2**30:.0f} GiB, {bf16}'


def checks() -> Iterator[Line]:
    """Run every check, each before those that it can break."""
    yield from check_python()
    for module in PACKAGES:
        yield from check_package(module)
    yield from check_pair()
    yield from check_families()
    yield from check_gpu()
    yield from check_mcbeit()


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    levels = []
    for level, name, text in checks():
        print(f'{level:4}  {name}: {text}', flush=True)
        levels.append(level)
    print(f'{levels.count(FAIL)} FAIL, {levels.count(WARN)} WARN, {levels.count(OK)} OK')
    return 1 if FAIL in levels else 0


if __name__ == '__main__':
    sys.exit(main())
