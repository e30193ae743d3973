"""Training hooks, one per file."""

from .class_pictures import ClassPicturesHook
from .epoch_seed import EpochSeedHook
from .export_tokenizer import ExportTokenizerHook
from .fit_weights import FitWeightsHook
from .knn import KNNHook
from .reconstructions import ReconstructionHook
from .tau_warmup import TauWarmupHook
from .throughput import ThroughputHook
from .tokenizer_identity import TokenizerIdentityHook

__all__ = [
    'ClassPicturesHook',
    'EpochSeedHook',
    'ExportTokenizerHook',
    'FitWeightsHook',
    'KNNHook',
    'ReconstructionHook',
    'TauWarmupHook',
    'ThroughputHook',
    'TokenizerIdentityHook',
]
