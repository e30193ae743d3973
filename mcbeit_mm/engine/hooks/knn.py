"""k-NN accuracy of the backbone on a labeled image folder during pretraining."""

import torch
from mmengine.dist import all_gather, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.datasets import CustomDataset
from torch import Tensor, nn

from ...errors import SetupError
from ...evaluation.features import extract_features, folder_datasets, knn_accuracy, ordered_loader
from ...layers.model_wrappers import unwrap


@HOOKS.register_module()
class KNNHook(Hook):
    """Logs `knn_top1` in percent every `interval` epochs and after the last one.

    All ranks extract features, rank 0 classifies. The value goes to the log, the visualizer
    (scalars.json) and the message hub. With our loops, training stays bit-identical; with
    MMEngine's, later random numbers differ.

    Args:
        data: folder with train/ and val/, each with a folder per class.
        batch_size: images per rank.
        layer: index of the block; intermediate ones are often better than the last.
        max_train: number of training images, evenly spaced over the classes; None uses all,
            which takes 8 GB on the first GPU for ImageNet-1k and ViT-B.
        bf16: extract features under bfloat16 autocast.
    """

    def __init__(
        self,
        data: str,
        interval: int = 10,
        k: int = 20,
        batch_size: int = 128,
        num_workers: int = 4,
        layer: int = -1,
        max_train: int | None = 100_000,
        bf16: bool = False,
    ):
        self.data, self.interval, self.k, self.max_train = data, interval, k, max_train
        self.batch_size, self.num_workers = batch_size, num_workers
        self.layer, self.bf16 = layer, bf16

    def before_train(self, runner: Runner) -> None:
        """List the images; raise SetupError before training rather than after it."""
        model = unwrap(runner.model)
        backbone, preprocessor = model.backbone, model.data_preprocessor
        try:
            self._datasets = folder_datasets(
                self.data,
                tuple(side * backbone.patch_size for side in backbone.grid),
                preprocessor.mean.flatten().tolist(),
                preprocessor.std.flatten().tolist(),
                preprocessor._channel_conversion,
                self.max_train,
            )
        except (FileNotFoundError, ValueError) as error:
            raise SetupError(f'KNNHook: {error}') from error
        if not 1 <= self.k <= len(self._datasets[0]):
            raise SetupError(f'KNNHook: expected k in [1, {len(self._datasets[0])}], got {self.k}')
        if not -backbone.num_layers <= self.layer < backbone.num_layers:
            raise SetupError(f'KNNHook: no layer {self.layer} among {backbone.num_layers} blocks')

    def after_train_epoch(self, runner: Runner) -> None:
        """Extract features, classify and log."""
        if not self.every_n_epochs(runner, self.interval) and not self.is_last_train_epoch(runner):
            return
        backbone = unwrap(runner.model).backbone
        device = next(backbone.parameters()).device
        feats = [x for data in self._datasets for x in self._features(backbone, data, device)]
        if is_main_process():
            self._log(runner, knn_accuracy(*(x.to(device) for x in feats), k=self.k))
        torch.cuda.empty_cache()

    def _features(
        self, backbone: nn.Module, dataset: CustomDataset, device: torch.device
    ) -> list[Tensor]:
        """Return features (N, D) and labels (N,) of all ranks, in data set order, on the CPU."""
        loader = ordered_loader(dataset, self.batch_size, self.num_workers)
        part = extract_features(backbone, loader, device, [self.layer], self.bf16)
        # The sampler assigns images to ranks in turn, and repeats some to even them out.
        return [
            torch.stack(all_gather(x), dim=1).flatten(0, 1)[: len(dataset)]
            for x in (part['feats'][0], part['labels'])
        ]

    def _log(self, runner: Runner, accuracy: float) -> None:
        epoch = runner.epoch + 1
        runner.message_hub.update_scalar('knn_top1', accuracy)
        runner.visualizer.add_scalars(dict(knn_top1=accuracy, epoch=epoch), step=runner.iter)
        runner.logger.info(
            f'Epoch {epoch}: knn_top1 {accuracy:.2f} % (k={self.k}, block {self.layer})'
        )
