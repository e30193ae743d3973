"""A stand-in for mmcv's compiled ``mmcv._ext`` that runs box ops on torchvision's kernels."""

import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import NoReturn

import torch
from torch import Tensor

_MODULE = 'mmcv._ext'
_REMEDY = (
    'Compile mmcv for the installed torch (about 20 minutes; needs a C++ compiler; for GPU ops '
    'also CUDA): pip install "setuptools>=80" wheel && pip install --no-build-isolation '
    '--no-cache-dir --force-reinstall --no-deps onedl-mmcv'
)


def install() -> bool:
    """Make ``mmcv.ops`` and mmdet usable when mmcv has no compiled ops.

    Call it before anything imports ``mmcv.ops``: mmdet and mmseg permanently replace ops that fail
    to import by stubs. Returns True if the stand-in is installed, False if compiled ops exist.
    """
    if _FINDER in sys.meta_path:
        return True
    if _has_compiled_ops():
        return False
    # Only mmcv.ops imports ext_loader, so an earlier `import mmcv.ops` has failed.
    if 'mmcv.utils.ext_loader' in sys.modules and 'mmcv.ops' not in sys.modules:
        warnings.warn(
            'mmcv.ops failed to import before mcbeit_mm was imported: mmdet and mmseg modules '
            'already loaded cannot use its ops. Import mcbeit_mm before mmdet and mmseg.',
            RuntimeWarning,
            stacklevel=2,
        )
    sys.meta_path.append(_FINDER)  # last: compiled ops installed later still win
    return True


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the kept boxes (N, 4), by descending score.

    A box is dropped if its IoU with a kept one exceeds the threshold. Widths are x2 - x1 + offset,
    heights likewise.
    """
    _load_torchvision()
    dtype = torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)
    boxes = boxes.to(dtype)
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    # mmcv compares in the dtype of the boxes, torchvision in double: 0.1 is not float32(0.1).
    iou_threshold = torch.tensor(iou_threshold, dtype=dtype).item()
    return torch.ops.torchvision.nms(boxes, scores.to(dtype), iou_threshold)


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, **settings
) -> None:
    """Write the average-pooled regions (N, C, ., .) of input (B, C, H, W) to `output`.

    Each of the rois (N, 5) is batch index, x1, y1, x2, y2.
    """
    output.copy_(_roi_align('roi_align', input, rois, (), **settings))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    **settings,
) -> None:
    """Write the gradient of `roi_align_forward` with respect to its input to `grad_input`."""
    grads = _roi_align('_roi_align_backward', grad_output, rois, grad_input.shape, **settings)
    grad_input.copy_(grads)


def _roi_align(
    kernel: str,
    x: Tensor,
    rois: Tensor,
    input_shape: tuple[int, ...],
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> Tensor:
    """Call a kernel of torchvision, in float32 for half precision; mmcv documents the settings."""
    if pool_mode != 1:
        raise NotImplementedError(
            "RoIAlign with pool_mode='max' needs compiled mmcv ops: torchvision's kernel only "
            f"averages. Use pool_mode='avg'. {_REMEDY}"
        )
    _load_torchvision()
    dtype = torch.promote_types(x.dtype, torch.float32)
    sizes = (spatial_scale, aligned_height, aligned_width, *input_shape, sampling_ratio, aligned)
    return getattr(torch.ops.torchvision, kernel)(x.to(dtype), rois.to(dtype), *sizes)


class _StandInFinder(MetaPathFinder, Loader):
    """Finds and loads the stand-in, which looks like an ordinary module to `find_spec`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(_MODULE, self, origin='torchvision') if fullname == _MODULE else None

    def exec_module(self, module: ModuleType) -> None:
        module.nms = nms
        module.roi_align_forward = roi_align_forward
        module.roi_align_backward = roi_align_backward
        # mmcv.utils.collect_env calls these two.
        module.get_compiler_version = lambda: 'n/a (ops served by torchvision)'
        module.get_compiling_cuda_version = lambda: 'n/a (ops served by torchvision)'
        module.__getattr__ = _missing_op


_FINDER = _StandInFinder()


def _has_compiled_ops() -> bool:
    if _MODULE in sys.modules:
        return True
    mmcv = importlib.util.find_spec('mmcv')  # finds without importing
    return mmcv is not None and bool(PathFinder.find_spec(_MODULE, mmcv.submodule_search_locations))


def _load_torchvision() -> None:
    import torchvision  # noqa: F401  (registers torch.ops.torchvision; takes seconds)


def _missing_op(name: str) -> Callable[..., NoReturn]:
    # mmcv looks up every op at import time, so only the call may fail.
    if name.startswith('__'):
        raise AttributeError(f'module {_MODULE!r} has no attribute {name!r}')
    return partial(_raise_missing, name)


def _raise_missing(name: str, *args: object, **kwargs: object) -> NoReturn:
    raise NotImplementedError(
        f'{name!r} needs compiled mmcv ops: this mmcv has none, and torchvision has no such '
        f'kernel. {_REMEDY}'
    )
