"""Small VQGAN: stride 8, 512 codes, 0.9 M parameters (our choice)."""

model = dict(
    type='GumbelVQGANTrainer',
    data_preprocessor=dict(
        type='SelfSupDataPreprocessor', mean=[0.0] * 3, std=[255.0] * 3, to_rgb=True
    ),
    ddconfig=dict(
        double_z=False,
        z_channels=64,
        resolution=64,
        in_channels=3,
        out_ch=3,
        ch=16,
        ch_mult=[1, 2, 2, 4],
        num_res_blocks=1,
        attn_resolutions=[],
        dropout=0.0,
        num_groups=4,
    ),
    n_embed=512,
    embed_dim=16,
    restart_interval=100,  # moves unused codes to random latents
)
