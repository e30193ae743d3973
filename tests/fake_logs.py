"""Made-up logs of runs and output of tools."""


def block(knn, linear):
    return dict(knn=knn, linear=linear, knn_held_out=0.0, linear_held_out=0.0, linear_strength=1.0)


def features():
    """JSON of tools/evaluate_features.py."""
    checkpoint = {'0': block(31.25, 41.0), '1': block(22.0, 35.5)}
    random = {'0': block(11.0, 12.0), '1': block(13.0, 9.5)}
    return dict(
        checkpoint='x.pth',
        data=dict(root='data', train=100, val=80, classes=10),
        k=20,
        models={
            'checkpoint': dict(chosen=dict(knn=0, linear=0), blocks=checkpoint),
            'random init': dict(chosen=dict(knn=1, linear=0), blocks=random),
        },
    )


def scalars(first=1, last=4):
    """Entries of scalars.json."""
    keys = ('loss', 'kl', 'target_entropy', 'mlm_acc', 'lr', 'grad_norm', 'rec', 'psnr')
    return [
        dict.fromkeys(keys, 1 / step)
        | dict(step=step, time=3.0, images_per_s=40.0 + step, tokenizer_share=0.25)
        for step in range(first, last + 1)
    ]
