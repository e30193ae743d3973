"""Image tokenizers: frozen models that turn an image into logits over a visual vocabulary."""

from .base import Tokenizer
from .gumbel_vqgan import GumbelVQGAN, GumbelVQGANTokenizer

__all__ = ['GumbelVQGAN', 'GumbelVQGANTokenizer', 'Tokenizer']
