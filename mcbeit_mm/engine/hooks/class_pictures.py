"""Pictures of predictions on image folders, where files of two classes may share a name."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.registry import HOOKS
from mmpretrain.engine.hooks import VisualizationHook
from mmpretrain.structures import DataSample


@HOOKS.register_module()
class ClassPicturesHook(VisualizationHook):
    """mmpretrain's VisualizationHook, with pictures named by folder and file."""

    def _draw_samples(
        self, batch_idx: int, data_batch: dict, data_samples: Sequence[DataSample], step: int = 0
    ) -> None:
        named = [sample.clone() for sample in data_samples]
        for sample in named:
            name = '_'.join(Path(sample.img_path).parts[-2:])
            sample.set_metainfo(dict(img_path=name))
        super()._draw_samples(batch_idx, data_batch, named, step)
