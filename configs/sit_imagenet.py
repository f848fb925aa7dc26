"""SiT-XL/2 on ImageNet at 256 px (arXiv:2401.08740): DiT's network of 28 layers on a straight path.

For: published weights, to draw with or to go on training, and a TPU slice with a prepared TFDS
`imagenet2012`. As published: Stable Diffusion's autoencoder, the linear path, velocities in SiT's own time,
outputs for a variance that are thrown away, AdamW at 1e-4 without decay, batch 256, EMA 0.9999, and their
script's Dormand-Prince with guidance 4 of the first three channels. The paper's best figure is the SDE's:
`--config.sampler.solver="{'name': 'sde'}"` and the knobs `steps=250,guidance=1.5`.
Cost: `--mode=plan` prints parameters, FLOPs a step and memory a device before anything is rented.
Expect: nothing measured yet; the paper's FID-50k is 2.06 after 7 M steps.
"""

from ml_collections import ConfigDict

VARIANTS = ('', '256', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """'256' (also '') is the published resolution, 'tiny' a miniature on synthetic data."""
    config = ConfigDict()
    config.data = dict(name='tfds', dataset='imagenet2012', label_key='label', split='train', resolution=256)
    config.held_out = dict(split='validation')
    config.tokenizer = dict(name='kl_vae', dtype='bfloat16')
    config.conditioner = dict(name='labels', classes=1000)
    config.path = dict(name='linear')
    config.prediction = dict(output='velocity', time='reversed')
    config.model = dict(
        name='dit', size='XL', patch=2, discard_variance=True, dtype='bfloat16', remat='named'
    )
    config.objective = dict(name='diffusion', times='uniform', drop=0.1)
    config.sampler = dict(
        name='diffusion', solver=dict(name='dopri5', atol=1e-6, rtol=1e-3), guidance=4.0, guided_channels=3
    )
    config.optimizer = dict(name='adamw', learning_rate=1e-4, schedule='constant', weight_decay=0.0, clip=0.0)
    config.ema = dict(decay=0.9999)
    config.mesh = dict(fsdp=-1)
    config.train = dict(
        steps=7_000_000,
        batch=256,
        flip=True,
        threads=16,
        log_every=100,
        held_out_every=10_000,
        sample_every=10_000,
        save_every=5000,
        keep=3,
        keep_period=50_000,
    )
    if variant == 'tiny':
        config.data = dict(name='synthetic', resolution=16, classes=1000, captions=False, examples=32)
        config.held_out.split = 'test'
        config.tokenizer = dict(name='kl_vae', widths=(8, 8), blocks=1, groups=4)
        config.model.update(hidden=32, depth=2, heads=2)
        config.train.update(
            steps=3,
            batch=8,
            sample_batch=8,
            threads=2,
            log_every=1,
            held_out_every=3,
            held_out_batches=1,
            sample_every=3,
            save_every=2,
        )
    return config
