"""Image tokenizers: frozen models that turn an image into logits over a visual vocabulary."""

from .base import Tokenizer
from .cached import CachedTokenizer
from .dalle import DALLETokenizer
from .discriminator import PatchDiscriminator
from .dvae import DiscreteVAETokenizer
from .ema_training import EMAVQGANTrainer
from .ema_vqgan import EMAVQGAN, EMAVQGANTokenizer
from .gumbel_training import GumbelVQGANTrainer
from .gumbel_vqgan import GumbelVQGAN, GumbelVQGANTokenizer
from .metrics import ReconstructionMetric
from .perceptual import PerceptualLoss
from .vqkd import VQKDTokenizer

__all__ = [
    'CachedTokenizer',
    'DALLETokenizer',
    'DiscreteVAETokenizer',
    'EMAVQGAN',
    'EMAVQGANTokenizer',
    'EMAVQGANTrainer',
    'GumbelVQGAN',
    'GumbelVQGANTokenizer',
    'GumbelVQGANTrainer',
    'PatchDiscriminator',
    'PerceptualLoss',
    'ReconstructionMetric',
    'Tokenizer',
    'VQKDTokenizer',
]
