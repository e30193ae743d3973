"""Targets from a DALLE-pytorch dVAE; MCBEIT_TOKENIZER is the folder with pytorch_model.bin."""

_base_ = './baseline.py'

model = dict(head=dict(vocab_size=None), target_generator=dict(type='DiscreteVAETokenizer'))
