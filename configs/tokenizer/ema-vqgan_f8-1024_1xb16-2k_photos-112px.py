"""Small EMA VQGAN with 1,024 codes for 224-px pretraining; load it as EMAVQGANTokenizer."""

_base_ = './gumbel-vqgan_f8-1024_1xb16-2k_photos-112px.py'

model = dict(type='EMAVQGANTrainer')
