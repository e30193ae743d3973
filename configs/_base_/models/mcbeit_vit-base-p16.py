"""mc-BEiT ViT-B/16, 91,965,776 parameters with lm_head, and the Gumbel VQGAN (f8, 8192 codes).

Tokenizer: a folder with model.yaml and last.ckpt, set by MCBEIT_TOKENIZER or
--cfg-options model.target_generator.checkpoint=FOLDER
"""

model = dict(
    type='MCBEiT',
    data_preprocessor=dict(
        type='TwoViewDataPreprocessor',
        mean=[123.675, 116.28, 103.53],  # student: ImageNet statistics, authors' README
        std=[58.395, 57.12, 57.375],
        second_mean=[0.0, 0.0, 0.0],  # tokenizer: [0, 1]; it normalizes its input itself
        second_std=[255.0, 255.0, 255.0],
        to_rgb=True,
        non_blocking=True,  # works with the data loader's pin_memory
    ),
    backbone=dict(
        type='MCBEiTViT',
        arch='base',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,  # authors' README
        layer_scale_init_value=0.1,  # default of the authors' script
        rel_pos='shared',
        out_type='raw',
    ),
    head=dict(
        type='MCBEiTHead',
        embed_dims=768,
        vocab_size=8192,
        tau=4.0,  # authors' README: --temp 4.0
        omega=0.2,  # authors' README: --omega 0.2, the weight of the refined term
    ),
    target_generator=dict(
        type='GumbelVQGANTokenizer',
        checkpoint='{{$MCBEIT_TOKENIZER:weights/vqgan_gumbel_f8}}',
    ),
)
