"""Targets from a VQGAN with nearest-neighbor codes; MCBEIT_TOKENIZER is its folder.

The logits are negative squared distances; tau and omega are unchanged.
"""

_base_ = './baseline.py'

model = dict(head=dict(vocab_size=None), target_generator=dict(type='EMAVQGANTokenizer'))
