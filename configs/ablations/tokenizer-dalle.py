"""Targets from the DALL-E dVAE; MCBEIT_TOKENIZER is the folder with encoder.pkl."""

_base_ = './baseline.py'

model = dict(head=dict(vocab_size=None), target_generator=dict(type='DALLETokenizer'))
