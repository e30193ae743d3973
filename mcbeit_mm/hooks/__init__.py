"""Training hooks, one per file."""

from .knn import KNNHook
from .tau_warmup import TauWarmupHook
from .throughput import ThroughputHook
from .tokenizer_identity import TokenizerIdentityHook

__all__ = ['KNNHook', 'TauWarmupHook', 'ThroughputHook', 'TokenizerIdentityHook']
