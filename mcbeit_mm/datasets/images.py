"""Decode images of any kind to 8-bit BGR; refuse damaged ones with a reason.

Decoders differ in what they accept: OpenCV before 4.12 fills the rest of a truncated JPEG with
gray, Pillow clips 16-bit images to white.
"""

import re
import warnings
from io import BytesIO
from typing import BinaryIO

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.registry import TRANSFORMS
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow's own limit (Image.MAX_IMAGE_PIXELS): a quarter of a GiB at 3 bytes per pixel.
MAX_PIXELS = 1024**3 // 4 // 3
# Not everything Pillow reads: EPS, for one, starts Ghostscript.
FORMATS = ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'DIB', 'PPM', 'TIFF', 'JPEG2000', 'AVIF')
JPEG = ('JPEG', 'MPO')  # Pillow's name for a JPEG followed by further pictures
JPEG_END = b'\xff\xd9'
# In JPEG data FF 00 is the byte FF, FF D0-D7 are restart markers, FF FF is padding.
JPEG_MARKER = re.compile(rb'\xff([^\x00\xff\xd0-\xd7])')
JPEG_BARE = (0xD8, 0x01)  # markers without a length: start of image, TEM
PNG_END = b'IEND\xaeB`\x82'  # the last chunk's name and checksum
REDUCED = {  # divisor of the sides -> flag of cv2
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}


class BadImageError(ValueError):
    """An image cannot be used; the message says why."""


def open_image(file: BinaryIO, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image's header with Pillow, without decoding.

    Raises:
        BadImageError: empty, unsupported format, damaged header, more than `max_pixels` pixels.
    """
    if not file.read(1):
        raise BadImageError('empty file')
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # broken EXIF, many pixels
            image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        formats = ', '.join(FORMATS)
        raise BadImageError(f'not an image ({formats}), or its header is damaged') from None
    except Image.DecompressionBombError:
        raise BadImageError('too many pixels: more than Pillow decodes') from None
    except Exception as error:  # Pillow's plugins raise anything: SyntaxError, struct.error, ...
        raise BadImageError(f'damaged header: {error!r}') from error
    if image.width * image.height > max_pixels:
        raise BadImageError(
            f'too many pixels: {image.width} x {image.height}, expected at most {max_pixels}'
        )
    return image


def check_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Check an image's header and, for JPEG and PNG, its end marker, without decoding.

    Truncation of other formats is left to their decoders.

    Raises:
        BadImageError: truncated, or refused by `open_image`.
    """
    image = open_image(BytesIO(data), max_pixels)
    if image.format in JPEG and not (data.endswith(JPEG_END) or _jpeg_ends(data)):
        raise BadImageError('truncated image: no JPEG end marker')
    if image.format == 'PNG' and data.rfind(PNG_END) < 0:
        raise BadImageError('truncated image: no PNG end chunk')
    return image


def _jpeg_ends(data: bytes) -> bool:
    """Whether an end marker stands outside all segments (previews have one inside)."""
    position = 2
    while match := JPEG_MARKER.search(data, position):
        position, code = match.end(), match[1][0]
        if code == JPEG_END[1]:
            return True
        if code not in JPEG_BARE:
            position += int.from_bytes(data[position : position + 2], 'big')
    return False


def read_image(
    data: bytes, max_pixels: int = MAX_PIXELS, enough_pixels: int | None = None
) -> np.ndarray:
    """Decode an image by the rules of `LoadCheckedImage`.

    Returns:
        (H, W, 3) uint8 in BGR.

    Raises:
        BadImageError: `check_image` refuses the image, or it cannot be decoded.
    """
    image = check_image(data, max_pixels)
    animated = image.format in ('PNG', 'WEBP', 'AVIF') and getattr(image, 'is_animated', False)
    if image.format == 'GIF' or animated:
        return _decode_by_pillow(image)
    scalable = enough_pixels and image.format in JPEG
    flag = _scale_flag(image.size, enough_pixels) if scalable else cv2.IMREAD_COLOR
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise BadImageError(f'damaged image: {error!r}') from error
    if decoded is not None:
        return decoded
    # Pillow uses libjpeg too, and clips 16 bits ('I' or 'I;16') and more.
    if image.format in JPEG or image.mode[0] in 'IF':
        raise BadImageError('damaged image: no decoder reads it')
    return _decode_by_pillow(image)


def _scale_flag(size: tuple[int, int], enough_pixels: int) -> int:
    """Return cv2's flag of the largest reduction with enough pixels."""
    for divisor, flag in REDUCED.items():
        width, height = (-(-side // divisor) for side in size)  # libjpeg rounds up
        if width * height >= enough_pixels:
            return flag
    return cv2.IMREAD_COLOR


def _decode_by_pillow(image: Image.Image) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            rgb = ImageOps.exif_transpose(image).convert('RGB')  # drops transparency
    except Exception as error:
        raise BadImageError(f'damaged image: {error!r}') from error
    return np.array(rgb)[:, :, ::-1].copy()


@TRANSFORMS.register_module()
class LoadCheckedImage(BaseTransform):
    """Loads `img_path` as BGR with the pixels of mmcv's LoadImageFromFile; safe for any file.

    Gray, palette and CMYK images become BGR, 16-bit ones keep the high byte, float and 32-bit ones
    are refused. Transparency is dropped, the first frame of an animation is used, EXIF rotation is
    applied. Pillow decodes what cv2 cannot, except JPEG.

    Args:
        max_pixels: larger images are refused before they are decoded.
        enough_pixels: decode a JPEG at the smallest of 1/8, 1/4, 1/2 of its sides that has this
            many pixels (faster; see docs/data.md). Shapes are those of the decoded image.
        backend_args: arguments of MMEngine's file backend.

    Raises:
        BadImageError: with path and reason. File system errors pass through.
    """

    def __init__(
        self,
        max_pixels: int = MAX_PIXELS,
        enough_pixels: int | None = None,
        backend_args: dict | None = None,
    ):
        if enough_pixels is not None and enough_pixels < 1:
            raise ValueError(f'enough_pixels={enough_pixels}, expected 1 or more, or None')
        self.max_pixels, self.enough_pixels = max_pixels, enough_pixels
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Add img, img_shape and ori_shape."""
        path = results['img_path']
        data = fileio.get(path, backend_args=self.backend_args)
        try:
            image = read_image(data, self.max_pixels, self.enough_pixels)
        except BadImageError as error:
            raise BadImageError(f'{path}: {error}') from error
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results
