"""Image tokenizers: frozen models that turn an image into logits over a visual vocabulary."""

from .base import Tokenizer

__all__ = ['Tokenizer']
