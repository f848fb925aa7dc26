"""LightningDiT-XL/1 on ImageNet at 256 px (arXiv:2501.01423): DiT with rotary positions and SwiGLU.

For: published weights, to draw with or to go on training, and a TPU slice with a prepared TFDS
`imagenet2012`. As published: VA-VAE's latents (16 x 16 x 32, each channel normalised), the linear path,
velocities in SiT's own time and their angle in the loss, logit-normal times, AdamW at 2e-4 with beta2 0.95,
batch 1024, EMA 0.9999; 250 times of Euler's method moved towards the noise, guidance of the first three
channels but where the noise is greatest. Not as published: '800ep' draws logit-normal times to its end, where
the authors changed to uniform ones on the way.
Cost: `--mode=plan` prints parameters, FLOPs a step and memory a device before anything is rented.
Expect: nothing measured yet; the paper's FID-50k is 2.11 after 64 epochs and 1.35 after 800.
"""

from ml_collections import ConfigDict

VARIANTS = ('', '64ep', '800ep', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """'64ep' (also '') and '800ep' are the published trainings, 'tiny' a miniature on synthetic data."""
    long = variant == '800ep'
    config = ConfigDict()
    config.data = dict(name='tfds', dataset='imagenet2012', label_key='label', split='train', resolution=256)
    config.held_out = dict(split='validation')
    config.tokenizer = dict(name='va_vae', dtype='bfloat16')
    config.conditioner = dict(name='labels', classes=1000)
    config.path = dict(name='linear')
    config.prediction = dict(output='velocity', time='reversed')
    config.model = dict(name='lightning_dit', size='XL', patch=1, dtype='bfloat16', remat='named')
    config.objective = dict(name='diffusion', times='logit_normal', angle=1.0, drop=0.1)
    # Their 250 times are 249 steps, and their shift of 0.3 counts from the noise.
    config.sampler = dict(
        name='diffusion',
        solver=dict(name='euler'),
        steps=249,
        shift=1 / 0.3,
        guidance=6.7 if long else 10.0,
        high=0.875 if long else 0.9,
        guided_channels=3,
    )
    config.optimizer = dict(
        name='adamw',
        learning_rate=2e-4,
        schedule='constant',
        weight_decay=0.0,
        clip=0.0,
        options=dict(b2=0.95),
    )
    config.ema = dict(decay=0.9999)
    config.mesh = dict(fsdp=-1)
    config.train = dict(
        steps=1_000_000 if long else 80_000,
        batch=1024,
        flip=True,
        threads=16,
        log_every=100,
        held_out_every=10_000,
        sample_every=10_000,
        save_every=5000,
        keep=3,
        keep_period=20_000,
    )
    if variant == 'tiny':
        config.data = dict(name='synthetic', resolution=16, classes=1000, captions=False, examples=32)
        config.held_out.split = 'test'
        config.tokenizer = dict(name='va_vae', widths=(8, 8), blocks=1, groups=4, attention=(1,), channels=4)
        config.model.update(hidden=32, depth=2, heads=2, qk_norm=True)
        config.sampler.steps = 2
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
