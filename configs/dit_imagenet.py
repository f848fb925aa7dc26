"""DiT-XL/2 on ImageNet at 256 px (arXiv:2212.09748) at its published size: 28 layers, width 1152, 16 heads.

For: a TPU slice and a prepared TFDS `imagenet2012`. As published: the linear betas, noise prediction with
learned variance, AdamW at 1e-4 without decay, batch 256, EMA 0.9999, 400,000 steps (7 M for the paper's
best figure). Not as published yet: until the library carries the published autoencoder, latents are
pixels folded 8 x 8 into channels, the same 32 x 32 grid of 256 tokens with 192 channels in place of 4;
first and last layer are the wider for it.
Cost: `--mode=plan` prints parameters, FLOPs a step and memory a device before anything is rented.
Expect: nothing measured yet; the paper's FID-50k is 2.27 with guidance 1.5.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """'' is the recipe, 'tiny' its miniature on synthetic data."""
    config = ConfigDict()
    config.data = dict(name='tfds', dataset='imagenet2012', label_key='label', split='train', resolution=256)
    config.held_out = dict(split='validation')
    config.tokenizer = dict(name='pixels', fold=8)
    config.conditioner = dict(name='labels', classes=1000)
    config.path = dict(name='vp', betas='linear')
    config.prediction = dict(output='noise', time='steps', learned_variance=True)
    config.model = dict(name='dit', size='XL', patch=2, dtype='bfloat16', remat='named')
    config.objective = dict(name='diffusion', times='discrete', drop=0.1)
    config.sampler = dict(name='diffusion', solver=dict(name='ddim', eta=0.0), steps=250, guidance=1.5)
    config.optimizer = dict(name='adamw', learning_rate=1e-4, schedule='constant', weight_decay=0.0, clip=0.0)
    config.ema = dict(decay=0.9999)
    config.mesh = dict(fsdp=-1)
    config.train = dict(
        steps=400_000,
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
        config.data = dict(name='synthetic', resolution=32, classes=1000, captions=False, examples=32)
        config.held_out.split = 'test'
        config.model.update(hidden=32, depth=2, heads=2)
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
