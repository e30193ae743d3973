"""Image tokenizers: frozen models that turn an image into logits over a visual vocabulary."""

from .base import Tokenizer
from .ema_vqgan import EMAVQGAN, EMAVQGANTokenizer
from .gumbel_vqgan import GumbelVQGAN, GumbelVQGANTokenizer
from .training import ExportTokenizerHook, GumbelVQGANTrainer

__all__ = [
    'EMAVQGAN',
    'EMAVQGANTokenizer',
    'ExportTokenizerHook',
    'GumbelVQGAN',
    'GumbelVQGANTokenizer',
    'GumbelVQGANTrainer',
    'Tokenizer',
]
