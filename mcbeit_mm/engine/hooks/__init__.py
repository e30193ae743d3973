"""Training hooks, one per file."""

from .bad_samples import BadSamplesHook
from .class_pictures import ClassPicturesHook
from .export_tokenizer import ExportTokenizerHook
from .fit_weights import FitWeightsHook
from .interrupt import InterruptHook
from .knn import KNNHook
from .numerics import NumericsHook
from .reconstructions import ReconstructionHook
from .safe_checkpoint import SafeCheckpointHook
from .tau_warmup import TauWarmupHook
from .throughput import ThroughputHook
from .tokenizer_identity import TokenizerIdentityHook

__all__ = [
    'BadSamplesHook',
    'ClassPicturesHook',
    'ExportTokenizerHook',
    'FitWeightsHook',
    'InterruptHook',
    'KNNHook',
    'NumericsHook',
    'ReconstructionHook',
    'SafeCheckpointHook',
    'TauWarmupHook',
    'ThroughputHook',
    'TokenizerIdentityHook',
]
