"""Unlabeled images in any folder."""

import os
from pathlib import Path
from typing import Any
from zlib import crc32

from mmengine import fileio
from mmengine.registry import DATASETS
from mmpretrain.datasets import CustomDataset

from ..errors import SetupError


@DATASETS.register_module()
class PhotoFolder(CustomDataset):
    """All images below a folder, without labels; optionally split into train and val.

    The split depends only on the CRC-32 of an image's path relative to `data_root`: adding or
    removing images and moving the folder do not change it for the others.

    Args:
        data_prefix: folder inside `data_root`; '' for all of it.
        split: 'all', 'train' or 'val'.
        val_share: expected share of 'val' among all images, in (0, 1).
        kwargs: arguments of mmpretrain's CustomDataset (`pipeline`, `extensions`, ...).

    Raises:
        FileNotFoundError: the folder is missing or has no images.
        ValueError: invalid arguments.
        SetupError: an empty split.
    """

    def __init__(
        self,
        data_root: str = '',
        data_prefix: str | dict[str, str] = '',
        split: str = 'all',
        val_share: float = 0.05,
        **kwargs: Any,
    ):
        if split not in ('all', 'train', 'val') or not 0 < val_share < 1:
            raise ValueError(
                f"expected split 'all', 'train' or 'val' and 0 < val_share < 1, got {split=}, "
                f'{val_share=}'
            )
        self.split, self.val_share = split, val_share
        super().__init__(data_root, data_prefix, with_label=False, **kwargs)

    def load_data_list(self) -> list[dict[str, str]]:
        """Return the `img_path` of each image of the split, sorted."""
        if not fileio.isdir(self.img_prefix):
            raise FileNotFoundError(
                f'no data folder {self.img_prefix} (from {Path.cwd()}): set MCBEIT_DATA=FOLDER or '
                'data_root'
            )
        try:
            images = super().load_data_list()
        except RuntimeError as error:  # mmpretrain found no files
            extensions = ', '.join(sorted(self.extensions))
            raise FileNotFoundError(f'no image ({extensions}) below {self.img_prefix}') from error
        if self.split == 'all':
            return images
        share = [x for x in images if self._in_val(x['img_path']) == (self.split == 'val')]
        if not share:
            raise SetupError(
                f'split {self.split!r} of the {len(images)} images below {self.img_prefix} is '
                f'empty at val_share={self.val_share}: change val_share or add images'
            )
        return share

    def _in_val(self, path: str) -> bool:
        name = Path(os.path.relpath(path, self.data_root or self.img_prefix)).as_posix()
        return crc32(os.fsencode(name)) < self.val_share * 2**32
