"""Targets of a VQGAN with nearest-neighbour codes; MCBEIT_TOKENIZER is its folder.

The logits are minus squared distances; tau and omega stay.
"""

_base_ = './baseline.py'

model = dict(head=dict(vocab_size=None), target_generator=dict(type='EMAVQGANTokenizer'))
