"""A stand-in for mmcv's compiled ``mmcv._ext`` that serves box ops from torchvision's kernels."""

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
    'Compile mmcv against the installed torch (about 20 minutes; needs a C++ compiler, for GPU ops '
    'also CUDA): pip install "setuptools>=80" wheel && pip install --no-build-isolation '
    '--no-cache-dir --force-reinstall --no-deps onedl-mmcv'
)


def install() -> bool:
    """Let ``mmcv.ops`` and mmdet work where mmcv was installed without compiled ops.

    To be called before anything imports ``mmcv.ops``: mmdet and mmseg replace ops that fail to
    import by stubs and keep them, which is warned about.

    Returns:
        True if the stand-in is in place, now or from an earlier call; False if compiled ops exist.
    """
    if _FINDER in sys.meta_path:
        return True
    if _has_compiled_ops():
        return False
    # Only mmcv.ops imports ext_loader, so this is the trace of a failed `import mmcv.ops`.
    if 'mmcv.utils.ext_loader' in sys.modules and 'mmcv.ops' not in sys.modules:
        warnings.warn(
            'mmcv.ops failed to import before mcbeit_mm was imported, so mmdet and mmseg modules '
            'loaded by then cannot use its ops. Import mcbeit_mm before mmdet and mmseg.',
            RuntimeWarning,
            stacklevel=2,
        )
    sys.meta_path.append(_FINDER)  # last: compiled ops installed later still win
    return True


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the kept boxes, by descending score.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2; any dtype, computed in float32 or float64.
        scores: (N,).
        iou_threshold: A box is dropped if its IoU with a kept one is larger.
        offset: 0 or 1; widths are x2 - x1 + offset, heights likewise.
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
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the average-pooled regions to `output`; float16 and bfloat16 are computed in float32.

    Args:
        input: (B, C, H, W).
        rois: (N, 5) as batch index, x1, y1, x2, y2 in pixels; multiplied by `spatial_scale`.
        output: (N, C, aligned_height, aligned_width), overwritten.
        argmax_y: Unused, of max pooling.
        argmax_x: Unused, of max pooling.
        aligned_height: Height of the output.
        aligned_width: Width of the output.
        spatial_scale: Size of `input` over the size of the image.
        sampling_ratio: Samples per bin and axis; 0 takes as many as the bin has pixels.
        pool_mode: 1 (average); 0 (maximum) raises NotImplementedError.
        aligned: Shift the regions by half a pixel.
    """
    _require_average(pool_mode)
    _load_torchvision()
    dtype = torch.promote_types(input.dtype, torch.float32)
    output.copy_(
        torch.ops.torchvision.roi_align(
            input.to(dtype),
            rois.to(dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of `roi_align_forward` with respect to its input to `grad_input`.

    Args:
        grad_output: (N, C, aligned_height, aligned_width).
        rois: As in the forward pass, and so are the remaining arguments.
        argmax_y: Unused, of max pooling.
        argmax_x: Unused, of max pooling.
        grad_input: (B, C, H, W), overwritten.
        aligned_height: See `roi_align_forward`.
        aligned_width: See `roi_align_forward`.
        spatial_scale: See `roi_align_forward`.
        sampling_ratio: See `roi_align_forward`.
        pool_mode: See `roi_align_forward`.
        aligned: See `roi_align_forward`.
    """
    _require_average(pool_mode)
    _load_torchvision()
    dtype = torch.promote_types(grad_output.dtype, torch.float32)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output.to(dtype),
            rois.to(dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


class _StandInFinder(MetaPathFinder, Loader):
    """Finds and loads the stand-in; `find_spec` and `pkgutil` checks see an ordinary module."""

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


def _require_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            "RoIAlign with pool_mode='max' needs compiled mmcv ops; torchvision's kernel only "
            f"averages. Use pool_mode='avg'. {_REMEDY}"
        )


def _missing_op(name: str) -> Callable[..., NoReturn]:
    # mmcv asks for every op at import time, so only the call may fail.
    if name.startswith('__'):
        raise AttributeError(f'module {_MODULE!r} has no attribute {name!r}')
    return partial(_raise_missing, name)


def _raise_missing(name: str, *args: object, **kwargs: object) -> NoReturn:
    raise NotImplementedError(
        f'The op {name!r} needs compiled mmcv ops: this mmcv has none, and torchvision has no '
        f'kernel for it. {_REMEDY}'
    )
