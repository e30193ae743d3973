"""Check the environment: one line per requirement, and what to do about what is wrong.

Exit status 1 if a requirement is broken (FAIL). Needs nothing but the standard library to run.
"""

from __future__ import annotations  # so that an old Python gets to say that it is old

import argparse
import importlib.util
import shutil
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from re import match
from types import ModuleType

OK, WARN, FAIL = 'OK', 'WARN', 'FAIL'
Line = tuple  # (level, requirement, what was found and what to do)

# import name, maintained distribution, its oldest version, mainline distributions, required
PACKAGES = (
    ('mmengine', 'onedl-mmengine', '0.10.12', ('mmengine', 'mmengine-lite'), True),
    ('mmcv', 'onedl-mmcv', '2.3.6', ('mmcv', 'mmcv-lite', 'mmcv-full'), True),
    ('mmpretrain', 'onedl-mmpretrain', '1.3.6', ('mmpretrain',), True),
    ('mmseg', 'onedl-mmsegmentation', '1.4.2', ('mmsegmentation',), False),
    ('mmdet', 'onedl-mmdetection', '3.5.1', ('mmdet',), False),
)


def version(distribution: str) -> str | None:
    """Return the installed version, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def numbers(text: str | None) -> tuple[int, ...]:
    """Return the leading numbers of a version: '2.12.1+cpu' -> (2, 12, 1); nothing -> ()."""
    return tuple(int(n) for n in match(r'[\d.]*', text or '')[0].split('.') if n)


def first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {error}'.splitlines()[0]


def import_error(module: str) -> str:
    """Import a module; return what went wrong in one line, or an empty string."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything
        return first_line(error)
    return ''


def check_python(running: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Line]:
    text = '.'.join(map(str, running))
    if running[:2] < (3, 10):
        yield FAIL, 'Python', f'{text} is too old; make an environment with Python 3.10-3.12'
    elif running[:2] > (3, 12):
        yield WARN, 'Python', f'{text} is untested; Python 3.10-3.12 are known to work'
    else:
        yield OK, 'Python', text


def check_distribution(name: str, minimum: str, note: str = '', module: str = '') -> Iterator[Line]:
    label = f'{module} ({name})' if module else name
    found, remedy = version(name), f'pip install "{name}>={minimum}"'
    if found is None:
        yield FAIL, label, f'not installed; {remedy}'
    elif numbers(found) < numbers(minimum):
        yield FAIL, label, f'{found} is older than {minimum}; {remedy}'
    elif error := import_error(module or name):
        yield FAIL, label, f'{found} does not import ({error}); fix that or reinstall it'
    else:
        yield OK, label, found + note


def check_torchvision() -> Iterator[Line]:
    torch, found = version('torch'), version('torchvision')
    # torchvision 0.(n + 15) is built for torch 2.n.
    pair = f'0.{numbers(torch)[1] + 15}' if numbers(torch)[:1] == (2,) else None
    remedy = f'pip install "torchvision=={pair}.*"' if pair else 'pip install torch torchvision'
    remedy += ' from the index torch came from (both CPU or both the same CUDA)'
    if found is None:
        yield FAIL, 'torchvision', f'not installed; {remedy}'
    elif error := import_error('torchvision'):
        text = f'{found} does not import with torch {torch} ({error}); {remedy}'
        yield FAIL, 'torchvision', text
    elif pair and numbers(found)[:2] != numbers(pair):
        yield WARN, 'torchvision', f'{found} is not the pair of torch {torch}; {remedy}'
    else:
        yield OK, 'torchvision', f'{found}, pair of torch {torch}'


def check_scipy() -> Iterator[Line]:
    note = ''
    if numbers(version('scipy')) >= (1, 14):
        note = " (no interp2d: fine here; mmpretrain's and mmseg's own BEiT cannot resize tables)"
    yield from check_distribution('scipy', '1.11', note)


def check_opencv() -> Iterator[Line]:
    names = ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python')
    found = {name: version(name) for name in names if version(name)}
    listed = ', '.join(f'{name} {number}' for name, number in found.items())
    if error := import_error('cv2'):
        remedy = 'uninstall every OpenCV, then pip install opencv-python-headless'
        yield FAIL, 'OpenCV', f'cv2 does not import ({error}); {remedy}'
    elif len(set(found.values())) > 1:
        yield WARN, 'OpenCV', f'{listed} overwrite one another; make their versions equal'
    else:
        yield OK, 'OpenCV', listed or 'importable'


def check_package(
    module: str, onedl: str, minimum: str, mainline: tuple[str, ...], required: bool
) -> Iterator[Line]:
    found = [name for name in (onedl, *mainline) if version(name)]
    remedy = f'pip install "{onedl}>={minimum}"'
    if not found:
        level, use = (FAIL, '') if required else (WARN, ' (optional)')
        yield level, module, f'not installed{use}; {remedy}'
    elif len(found) > 1:
        text = f'{" and ".join(found)} overwrite one another; pip uninstall -y {" ".join(found)}'
        yield FAIL, module, f'{text}, then {remedy}'
    elif found == [onedl]:
        yield from check_distribution(onedl, minimum, module=module)
    else:
        yield from check_distribution(found[0], '0', ' from mainline', module)


def check_openmmlab() -> Iterator[Line]:
    for package in PACKAGES:
        yield from check_package(*package)
    onedl = [row[1] for row in PACKAGES if version(row[1])]
    mainline = [name for row in PACKAGES for name in row[3] if version(name)]
    if onedl and mainline:
        text = f'{", ".join(onedl)} mixed with mainline {", ".join(mainline)}; install one family'
        yield WARN, 'OpenMMLab', text
    mmengine = version('mmengine') or version('mmengine-lite')
    if mmengine and numbers(mmengine) < (0, 11) and numbers(version('torch')) >= (2, 6):
        text = 'mainline mmengine < 0.11 cannot resume with torch >= 2.6; use onedl-mmengine'
        yield WARN, 'resume', text
    yield from check_setuptools(bool(mainline))


def check_transformers() -> Iterator[Line]:
    found = version('transformers')
    if numbers(found) >= (5,):
        text = f"{found} breaks the import of mmpretrain (1.3.6); pip install 'transformers<5'"
        yield WARN, 'transformers', text
    elif found:
        yield OK, 'transformers', f'{found} (optional; slows the import of mmpretrain and mmdet)'


def check_setuptools(mainline: bool) -> Iterator[Line]:
    found = version('setuptools') or 'none'
    if importlib.util.find_spec('distutils') is None:
        text = f'{found}; mmengine imports distutils; pip install setuptools'
        yield FAIL, 'setuptools', text
    elif mainline and importlib.util.find_spec('pkg_resources') is None:
        text = f'{found} without pkg_resources, which mainline mmcv and mmengine import; '
        yield WARN, 'setuptools', text + 'pip install "setuptools<81"'
    else:
        yield OK, 'setuptools', found


def check_mcbeit() -> Iterator[Line]:
    if error := import_error('mcbeit_mm'):
        remedy = 'fix the lines above, then pip install -e . in the repository'
        yield FAIL, 'mcbeit_mm', f'does not import ({error}); {remedy}'
        return
    yield OK, 'mcbeit_mm', importlib.import_module('mcbeit_mm').__version__
    served = importlib.import_module('mcbeit_mm.mmcv_ops').install()
    if error := import_error('mmcv.ops'):
        remedy = 'reinstall mmcv: compiled ops fit only the torch they were built with'
        yield FAIL, 'mmcv ops', f'do not import ({error}); {remedy}'
    else:
        text = 'nms and roi_align served by torchvision; no other op' if served else 'compiled'
        yield OK, 'mmcv ops', text


def check_gpu() -> Iterator[Line]:
    if import_error('torch'):
        return
    torch = importlib.import_module('torch')
    if torch.cuda.is_available():
        yield from (check_one_gpu(torch, index) for index in range(torch.cuda.device_count()))
    elif shutil.which('nvidia-smi'):
        text = f'nvidia-smi is here, but torch {torch.__version__} sees no GPU; '
        yield WARN, 'GPU', text + 'install a CUDA build of torch or a newer driver'
    else:
        yield OK, 'GPU', 'none: CPU only, enough for the demo'


def check_one_gpu(torch: ModuleType, index: int) -> Line:
    device = torch.cuda.get_device_properties(index)
    bf16 = 'bf16' if device.major >= 8 else 'no bf16: use fp16'
    text = f'{device.name}, {device.total_memory / 2**30:.0f} GiB, {bf16}'
    try:
        torch.ones(1, device=f'cuda:{index}').add(1).item()
    except RuntimeError as error:
        text = f'{text}: cannot compute ({first_line(error)}); use another build of torch'
        return FAIL, 'GPU', text
    return OK, 'GPU', text


def checks() -> Iterator[Line]:
    """Run every check, in the order in which one can break the next."""
    yield from check_python()
    yield from check_distribution('torch', '2.6')
    yield from check_torchvision()
    yield from check_gpu()
    yield from check_distribution('timm', '1.0.31')
    yield from check_scipy()
    yield from check_opencv()
    yield from check_transformers()
    yield from check_openmmlab()
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
