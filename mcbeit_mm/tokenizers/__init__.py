"""Image tokenizers: frozen models that turn an image into logits over a visual vocabulary."""

from .base import Tokenizer
from .dalle import DALLETokenizer
from .dvae import DiscreteVAETokenizer
from .training.discriminator import PatchDiscriminator
from .training.ema import EMAVQGANTrainer
from .training.gumbel import GumbelVQGANTrainer
from .training.metrics import ReconstructionMetric
from .training.perceptual import PerceptualLoss
from .vqgan import EMAVQGAN, EMAVQGANTokenizer, GumbelVQGAN, GumbelVQGANTokenizer
from .vqkd import VQKDTokenizer

__all__ = [
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
