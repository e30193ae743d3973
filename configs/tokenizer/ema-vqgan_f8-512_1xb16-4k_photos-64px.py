"""Small EMA VQGAN with 512 codes for 128-px pretraining; load it as EMAVQGANTokenizer."""

_base_ = './gumbel-vqgan_f8-512_1xb16-4k_photos-64px.py'

model = dict(type='EMAVQGANTrainer')
