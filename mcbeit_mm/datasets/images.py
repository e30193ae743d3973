"""Reading images of any kind: by rule what can be shown as RGB, refused with a reason what cannot.

Decoders differ in what they let pass: OpenCV before 4.12 fills the rest of a truncated JPEG with
grey, Pillow clips 16-bit images to white.
"""

import re
import struct
import warnings
from io import BytesIO
from typing import NamedTuple

import cv2
import mmcv
import numpy as np
from mmcv.image.io import imread_flags
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.registry import TRANSFORMS
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow's own limit (Image.MAX_IMAGE_PIXELS): a quarter of a GiB at 3 bytes per pixel.
MAX_PIXELS = 1024**3 // 4 // 3
# Not all of Pillow's: EPS, for one, starts Ghostscript.
FORMATS = ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'DIB', 'PPM', 'TIFF', 'JPEG2000', 'AVIF')
JPEG_END = b'\xff\xd9'
# In JPEG data FF 00 is the byte FF, FF D0-D7 are restart markers, FF FF is filling.
JPEG_MARKER = re.compile(rb'\xff[^\x00\xff\xd0-\xd7]')
JPEG_START, JPEG_TEM = 0xD8, 0x01  # markers without a length
# Divisors of the sides that libjpeg decodes at -> what OpenCV's flags get to say so.
REDUCED = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
}


class BadImageError(ValueError):
    """An image that cannot be used; says why."""


class ImageHeader(NamedTuple):
    """What an image's header says of it: `format` and `mode` are Pillow's names; size in pixels."""

    format: str
    mode: str
    animated: bool
    width: int
    height: int


def check_image(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Look at an image's header and, of a JPEG or PNG, at its end; decode nothing.

    Decoders find the damage of the other formats.

    Raises:
        BadImageError: empty, not an image, more than `max_pixels` pixels, truncated.
    """
    if not data:
        raise BadImageError('empty file')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # broken EXIF, many pixels
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                kind = 'JPEG' if image.format == 'MPO' else image.format
                # TIFF would look for all its pages; a GIF is read alike with one frame or many.
                animated = kind in ('PNG', 'WEBP', 'AVIF') and getattr(image, 'is_animated', False)
                header = ImageHeader(kind, image.mode, animated, width, height)
    except UnidentifiedImageError:
        raise BadImageError('not an image, or damaged at its beginning') from None
    except Image.DecompressionBombError:
        raise BadImageError('more pixels than Pillow agrees to read') from None
    except Exception as error:  # decoders raise what they like: SyntaxError, struct.error, ...
        raise BadImageError(f'damaged header: {error!r}') from error
    if width * height > max_pixels:
        raise BadImageError(f'{width} x {height} pixels, more than {max_pixels} in all')
    if kind == 'JPEG' and not (data.endswith(JPEG_END) or _jpeg_ends(data)):
        raise BadImageError('truncated image: JPEG without its end marker')
    if kind == 'PNG' and not _png_ends(data):
        raise BadImageError('truncated image: PNG without its last chunk')
    return header


def _jpeg_ends(data: bytes) -> bool:
    """Find the end marker, not that of a preview within a segment, whatever comes after it."""
    place = 2
    while marker := JPEG_MARKER.search(data, place):
        place, code = marker.end(), data[marker.end() - 1]
        if code == JPEG_END[1]:
            return True
        if code not in (JPEG_START, JPEG_TEM):
            place += int.from_bytes(data[place : place + 2], 'big')
    return False


def _png_ends(data: bytes) -> bool:
    place = 8  # after the signature
    while place + 12 <= len(data):
        length, name = struct.unpack_from('>I4s', data, place)
        if name == b'IEND':
            return True
        place += length + 12
    return False


def read_image(
    data: bytes,
    color_type: str = 'color',
    backend: str | None = 'cv2',
    max_pixels: int = MAX_PIXELS,
    enough_pixels: int | None = None,
) -> np.ndarray:
    """Decode an image as `LoadCheckedImage` describes.

    Returns:
        As mmcv.imfrombytes: uint8 (H, W, 3) in BGR for 'color', (H, W) for 'grayscale'.

    Raises:
        BadImageError: `check_image` refuses it, or no decoder reads it.
        ValueError: `enough_pixels` is not positive, or the backend not cv2.
    """
    _check_enough(enough_pixels, backend)
    header = check_image(data, max_pixels)
    if color_type == 'unchanged':
        return _decoded(data, color_type, backend)
    if header.format == 'GIF' or header.animated:
        return _with_pillow(data, color_type)
    if header.mode[0] in 'IF':  # 16 bits and more; 'I' is 16-bit grey in some formats
        return _decoded(data, color_type, 'cv2')
    if enough_pixels and header.format == 'JPEG' and (divisor := _divisor(header, enough_pixels)):
        return _decoded(data, imread_flags[color_type] | REDUCED[divisor], backend)
    try:
        return _decoded(data, color_type, backend)
    except BadImageError:
        # Both use libjpeg: what one refuses, the other would at best show in part.
        if header.format == 'JPEG':
            raise
        return _with_pillow(data, color_type)


def _check_enough(enough_pixels: int | None, backend: str | None) -> None:
    if enough_pixels is None:
        return
    if enough_pixels < 1:
        raise ValueError(f'enough_pixels is {enough_pixels}, expected 1 or more, or None')
    if backend != 'cv2':
        raise ValueError(
            f"enough_pixels needs OpenCV's scaled decoding, got the backend {backend!r}: "
            "choose 'cv2' or enough_pixels=None"
        )


def _divisor(header: ImageHeader, enough_pixels: int) -> int | None:
    """Largest divisor of a JPEG's sides that leaves enough pixels; libjpeg rounds sides up."""
    for divisor in REDUCED:
        if -(-header.width // divisor) * -(-header.height // divisor) >= enough_pixels:
            return divisor
    return None


def _decoded(data: bytes, color_type: str | int, backend: str | None) -> np.ndarray:
    try:
        image = mmcv.imfrombytes(data, flag=color_type, backend=backend)
    except (cv2.error, OSError, SyntaxError, struct.error, EOFError) as error:
        raise BadImageError(f'damaged image: {error!r}') from error
    if image is None:
        raise BadImageError('damaged image, or of a kind that no decoder reads')
    return image


def _with_pillow(data: bytes, color_type: str) -> np.ndarray:
    try:
        with warnings.catch_warnings(), Image.open(BytesIO(data), formats=FORMATS) as image:
            warnings.simplefilter('ignore')
            if not color_type.endswith('ignore_orientation'):
                image = ImageOps.exif_transpose(image)
            rgb = image.convert('RGB')  # drops transparency
    except Exception as error:
        raise BadImageError(f'damaged image: {error!r}') from error
    if color_type.startswith('grayscale'):
        return np.array(rgb.convert('L'))
    return np.array(rgb)[:, :, ::-1].copy()


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """mmcv's LoadImageFromFile, with a rule for every kind of image; ordinary ones are bit-equal.

    Grey, palette, CMYK: converted to RGB, without color profiles. 16 bits: the high byte, by
    OpenCV. Float and 32-bit: refused, their range is unknown. Transparency: dropped, the color
    stored beneath it is shown. GIF and animations: first frame (of an animated PNG what readers
    without animation show), by Pillow. EXIF rotation: applied, as mmcv. What cv2 cannot read is
    left to Pillow, save JPEG. With color_type 'unchanged' the pixels are mmcv's.

    Args:
        max_pixels: larger images are refused by their header, before memory is taken for them.
        enough_pixels: if given, a JPEG is decoded at 1/8, 1/4 or 1/2 of its sides, the smallest
            that has this many pixels in all, by libjpeg's scaled inverse DCT: faster, see
            docs/data.md. img_shape and ori_shape are then those of the smaller image. Not for
            'unchanged', and only by cv2.
        kwargs: of LoadImageFromFile.

    Raises:
        BadImageError: with path and reason. Errors of the file system are raised as they come.
    """

    def __init__(
        self, *args, max_pixels: int = MAX_PIXELS, enough_pixels: int | None = None, **kwargs
    ):
        super().__init__(*args, **kwargs)
        _check_enough(enough_pixels, self.imdecode_backend)
        self.max_pixels, self.enough_pixels = max_pixels, enough_pixels

    def transform(self, results: dict) -> dict | None:
        """Add img, img_shape, ori_shape; None if it fails and `ignore_empty` is set."""
        path = results['img_path']
        try:
            image = read_image(
                self._bytes(path),
                self.color_type,
                self.imdecode_backend,
                self.max_pixels,
                self.enough_pixels,
            )
        except BadImageError as error:
            if self.ignore_empty:
                return None
            raise BadImageError(f'{path}: {error}') from error
        except OSError:
            if self.ignore_empty:
                return None
            raise
        results['img'] = image.astype(np.float32) if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def _bytes(self, path: str) -> bytes:
        if self.file_client_args is not None:
            return fileio.FileClient.infer_client(self.file_client_args, path).get(path)
        return fileio.get(path, backend_args=self.backend_args)
