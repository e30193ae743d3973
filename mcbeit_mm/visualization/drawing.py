"""Image + labels -> picture with colored classes, boxes and masks."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

SIDE = 288  # pixels of the longer side of a picture with text, at least


def read_image(path: str) -> np.ndarray:
    """RGB uint8 (H, W, 3)."""
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise FileNotFoundError(f'cannot read the image {path}')
    return image[..., ::-1].copy()


def colors(count: int) -> np.ndarray:
    """Well separated RGB colors (count, 3), uint8, always the same."""
    hues = (np.arange(count) * 0.381966) % 1  # the golden angle
    shades = [
        colorsys.hsv_to_rgb(hue, (1, 0.6)[i % 2], (0.95, 0.75, 0.6)[i % 3])
        for i, hue in enumerate(hues)
    ]
    return (255 * np.array(shades).reshape(count, 3)).round().astype(np.uint8)


def paint_classes(
    image: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float = 0.6
) -> np.ndarray:
    """Blend the class colors of a label map (H, W) into an image (H, W, 3); 255 stays as it is."""
    known = labels < len(palette)
    painted = image.astype(np.float32)
    painted[known] += opacity * (palette[labels[known]] - painted[known])
    return painted.round().astype(np.uint8)


def paint_objects(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    masks: np.ndarray | None,
    texts: Sequence[str],
    palette: np.ndarray,
) -> np.ndarray:
    """Draw boxes (N, 4) as x1, y1, x2, y2 with texts, and masks (N, H, W) bool; enlarges images
    whose longer side is below SIDE so that the texts can be read.
    """
    scale = max(1, round(SIDE / max(image.shape[:2])))
    image = np.kron(image, np.ones((scale, scale, 1), np.uint8))
    picture = torch.from_numpy(image).permute(2, 0, 1)
    shades = [tuple(palette[label].tolist()) for label in labels]
    if len(labels) and masks is not None:
        large = torch.from_numpy(np.kron(masks, np.ones((1, scale, scale), bool)))
        picture = draw_segmentation_masks(picture, large, alpha=0.55, colors=shades)
    if len(labels):
        corners = scale * torch.as_tensor(np.asarray(boxes), dtype=torch.float32)
        size = max(12, max(image.shape) // 14)
        picture = draw_bounding_boxes(
            picture, corners, list(texts), shades, width=3, font=_font(), font_size=size
        )
    return picture.permute(1, 2, 0).numpy()


def _font() -> str:
    from matplotlib import font_manager

    return font_manager.findfont('DejaVu Sans')  # comes with matplotlib
