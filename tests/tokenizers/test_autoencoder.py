import torch
from conftest import TINY_VQGAN

from mcbeit_mm.tokenizers import GumbelVQGANTokenizer


def test_attention_follows_the_nominal_resolution():
    ddconfig = TINY_VQGAN['ddconfig'] | dict(attn_resolutions=[8])
    tokenizer = GumbelVQGANTokenizer(ddconfig, 16, 4)
    names = [name for name in tokenizer.state_dict() if '.attn.' in name]
    assert names and all('.down.1.' in name or '.up.1.' in name for name in names)
    assert tokenizer(torch.rand(1, 3, 12, 20)).shape == (1, 16, 6, 10)
