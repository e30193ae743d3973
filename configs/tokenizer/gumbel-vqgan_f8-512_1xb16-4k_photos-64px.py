"""Small Gumbel VQGAN with 512 codes for 128-px pretraining, trained on any folder of photos.

MCBEIT_DATA=/path/to/photos python tools/train.py THIS_FILE --work-dir work_dirs/tok
writes work_dirs/tok/tokenizer; set MCBEIT_TOKENIZER to it for pretraining.
"""

_base_ = [
    '../_base_/models/vqgan_f8-512.py',
    '../_base_/datasets/photos_tokenizer-64px.py',
    '../_base_/schedules/tokenizer_adam_4k.py',
]

model = dict(warmup_iters=1000, total_iters=4000)
