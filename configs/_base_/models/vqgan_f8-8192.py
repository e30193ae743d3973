"""Network of the released vqgan_gumbel_f8 (its model.yaml) and a PatchGAN: 69 M + 2.8 M parameters.

The perceptual loss is off because it needs a file. To enable it in a derived config:
model = dict(perceptual=dict(type='PerceptualLoss', vgg_weights=FILE)), see docs/tokenizers.md.
"""

model = dict(
    type='GumbelVQGANTrainer',
    data_preprocessor=dict(
        type='SelfSupDataPreprocessor', mean=[0.0] * 3, std=[255.0] * 3, to_rgb=True
    ),
    ddconfig=dict(
        double_z=False,
        z_channels=256,
        resolution=256,
        in_channels=3,
        out_ch=3,
        ch=128,
        ch_mult=[1, 1, 2, 4],
        num_res_blocks=2,
        attn_resolutions=[32],
        dropout=0.0,
    ),
    n_embed=8192,
    embed_dim=256,
    perceptual=None,
    discriminator=dict(type='PatchDiscriminator', ndf=64, num_layers=3),
    disc_start=10_000,  # disc_start and disc_weight: custom_vqgan.yaml of taming-transformers
    disc_weight=0.8,
)
