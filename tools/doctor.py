"""Check the environment: a line per requirement, with a remedy for what is broken.

Exit status 1 if a requirement is broken (FAIL). Needs only the standard library, and takes the
oldest versions from setup.py, so that it also runs where nothing is installed.
"""

from __future__ import annotations  # lets an old Python report that it is old

import argparse
import importlib.util
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

OK, WARN, FAIL = 'OK', 'WARN', 'FAIL'
Line = tuple  # (level, requirement, finding and remedy)

SETUP = (Path(__file__).parents[1] / 'setup.py').read_text()
MINIMUM = dict(re.findall(r"'([\w-]+)>=([\d.]+)'", SETUP))  # distribution -> oldest version
PACKAGES = (  # module, maintained distribution, mainline distributions, required
    ('mmengine', 'onedl-mmengine', ('mmengine', 'mmengine-lite'), True),
    ('mmcv', 'onedl-mmcv', ('mmcv', 'mmcv-lite', 'mmcv-full'), True),
    ('mmpretrain', 'onedl-mmpretrain', ('mmpretrain',), True),
    ('mmseg', 'onedl-mmsegmentation', ('mmsegmentation',), False),
    ('mmdet', 'onedl-mmdetection', ('mmdet',), False),
)


def version(distribution: str) -> str | None:
    """Return the installed version, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def numbers(text: str | None) -> tuple[int, ...]:
    """Return the leading numbers of a version: '2.12.1+cpu' -> (2, 12, 1); None -> ()."""
    return tuple(int(n) for n in re.match(r'[\d.]*', text or '')[0].split('.') if n)


def error_of(action: Callable[[], object]) -> str:
    """Return the first line of the exception that an action raises, or an empty string."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            action()
    except Exception as error:  # a broken installation may raise anything
        return f'{type(error).__name__}: {error}'.splitlines()[0]
    return ''


def import_error(module: str) -> str:
    return error_of(lambda: importlib.import_module(module))


def check_python(running: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Line]:
    text = '.'.join(map(str, running))
    if running[:2] < (3, 10):
        yield FAIL, 'Python', f'{text} is too old; use Python 3.10-3.12'
    elif running[:2] > (3, 12):
        yield WARN, 'Python', f'{text} is untested; use Python 3.10-3.12'
    else:
        yield OK, 'Python', text


def check_distribution(
    name: str, module: str = '', minimum: str | None = None, note: str = ''
) -> Iterator[Line]:
    """Check version and import; `module` differs from the distribution's name where given."""
    minimum = MINIMUM[name] if minimum is None else minimum
    label = f'{module} ({name})' if module else name
    found, remedy = version(name), f'pip install "{name}>={minimum}"'
    if found is None:
        yield FAIL, label, f'not installed; {remedy}'
    elif numbers(found) < numbers(minimum):
        yield FAIL, label, f'{found} is older than {minimum}; {remedy}'
    elif error := import_error(module or name):
        yield FAIL, label, f'{found} does not import ({error}); fix the cause or reinstall it'
    else:
        yield OK, label, found + note


def check_torchvision() -> Iterator[Line]:
    torch, found = version('torch'), version('torchvision')
    # torchvision 0.(n + 15) is built for torch 2.n.
    pair = f'0.{numbers(torch)[1] + 15}' if numbers(torch)[:1] == (2,) else None
    remedy = f'pip install "torchvision=={pair}.*"' if pair else 'pip install torch torchvision'
    remedy += ' from the index of torch (both CPU or both the same CUDA)'
    if found is None:
        yield FAIL, 'torchvision', f'not installed; {remedy}'
    elif error := import_error('torchvision'):
        text = f'{found} does not import with torch {torch} ({error}); {remedy}'
        yield FAIL, 'torchvision', text
    elif pair and numbers(found)[:2] != numbers(pair):
        yield WARN, 'torchvision', f'{found} does not match torch {torch}; {remedy}'
    else:
        yield OK, 'torchvision', f'{found}, matches torch {torch}'


def check_opencv() -> Iterator[Line]:
    names = ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python')
    found = {name: version(name) for name in names if version(name)}
    listed = ', '.join(f'{name} {number}' for name, number in found.items())
    if error := import_error('cv2'):
        remedy = 'uninstall every OpenCV, then pip install opencv-python-headless'
        yield FAIL, 'OpenCV', f'cv2 does not import ({error}); {remedy}'
    elif len(set(found.values())) > 1:
        yield WARN, 'OpenCV', f'{listed} overwrite one another; install equal versions'
    else:
        yield OK, 'OpenCV', listed or 'importable'


def check_transformers() -> Iterator[Line]:
    found = version('transformers')
    if numbers(found) >= (5,):
        text = f"{found} breaks the import of mmpretrain (1.3.6); pip install 'transformers<5'"
        yield WARN, 'transformers', text
    elif found:
        yield OK, 'transformers', f'{found} (optional; slows the import of mmpretrain and mmdet)'


def check_package(
    module: str, onedl: str, mainline: tuple[str, ...], required: bool
) -> Iterator[Line]:
    found = [name for name in (onedl, *mainline) if version(name)]
    remedy = f'pip install "{onedl}>={MINIMUM[onedl]}"'
    if not found:
        level, use = (FAIL, '') if required else (WARN, ' (optional)')
        yield level, module, f'not installed{use}; {remedy}'
    elif len(found) > 1:
        text = f'{" and ".join(found)} overwrite one another; pip uninstall -y {" ".join(found)}'
        yield FAIL, module, f'{text}, then {remedy}'
    elif found == [onedl]:
        yield from check_distribution(onedl, module)
    else:
        yield from check_distribution(found[0], module, '0', ' from mainline')


def check_openmmlab() -> Iterator[Line]:
    for package in PACKAGES:
        yield from check_package(*package)
    onedl = [row[1] for row in PACKAGES if version(row[1])]
    mainline = [name for row in PACKAGES for name in row[2] if version(name)]
    if onedl and mainline:
        text = f'{", ".join(onedl)} mixed with mainline {", ".join(mainline)}; install one family'
        yield WARN, 'OpenMMLab', text
    mmengine = version('mmengine') or version('mmengine-lite')
    if mmengine and numbers(mmengine) < (0, 11) and numbers(version('torch')) >= (2, 6):
        text = 'mainline mmengine < 0.11 cannot resume with torch >= 2.6; use onedl-mmengine'
        yield WARN, 'resume', text
    found = version('setuptools') or 'none'
    if importlib.util.find_spec('distutils') is None:
        text = f'{found}; mmengine imports distutils; pip install setuptools'
        yield FAIL, 'setuptools', text
    elif mainline and importlib.util.find_spec('pkg_resources') is None:
        text = f'{found} lacks pkg_resources, which mainline mmcv and mmengine import; '
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
    text = 'nms and roi_align by torchvision; no other op' if served else 'compiled'
    if error := import_error('mmcv.ops'):
        text = f'do not import ({error}); reinstall mmcv: compiled ops fit one torch only'
    yield FAIL if error else OK, 'mmcv ops', text


def check_gpu() -> Iterator[Line]:
    if import_error('torch'):
        return
    torch = importlib.import_module('torch')
    if not torch.cuda.is_available():
        text = f'nvidia-smi exists, but torch {torch.__version__} sees no GPU; '
        text += 'install a CUDA build of torch or a newer driver'
        no_gpu = OK, 'GPU', 'none: CPU only, enough for the demo'
        yield (WARN, 'GPU', text) if shutil.which('nvidia-smi') else no_gpu
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = 'bf16' if device.major >= 8 else 'no bf16: use fp16'
        text = f'{device.name}, {device.total_memory / 2**30:.0f} GiB, {bf16}'
        error = error_of(lambda i=index: torch.ones(1, device=f'cuda:{i}').add(1).item())
        remedy = f': cannot compute ({error}); use another build of torch' if error else ''
        yield FAIL if error else OK, 'GPU', text + remedy


def checks() -> Iterator[Line]:
    """Run every check, each before those that it can break."""
    yield from check_python()
    yield from check_distribution('torch')
    yield from check_torchvision()
    yield from check_gpu()
    yield from check_distribution('timm')
    yield from check_distribution('scipy')
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
