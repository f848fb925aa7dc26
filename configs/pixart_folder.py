"""A text-to-image PixArt on a folder of one's own captioned images, by flow matching.

For: --config.data.path=/my/images, pictures beside a `metadata.jsonl` of captions. Pixels at 64 px,
PixArt-S/4 (256 tokens) with a text transformer that trains along, words hashed into 32,768 rows.
Cost: `--mode=plan` prints it for your machine; meant for one GPU or a few TPU cores.
Expect: nothing measured yet at this size; configs/quickstart.py is the same system in small, measured.
`:tiny` runs on synthetic data in seconds.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """'' is the recipe, 'tiny' its miniature."""
    config = ConfigDict()
    config.data = dict(name='folder', path='images', resolution=64, captions=True, crop='random')
    config.held_out = dict(split='test')
    config.tokenizer = dict(name='pixels')
    config.conditioner = dict(
        name='captions', vocabulary=32_768, length=64, width=384, depth=4, heads=6, dtype='bfloat16'
    )
    config.path = dict(name='linear')
    config.prediction = dict(output='velocity', time='thousand')
    config.model = dict(name='pixart', size='S', patch=4, dtype='bfloat16')
    config.objective = dict(name='diffusion', times='logit_normal', mean=0.5, drop=0.1)
    config.sampler = dict(name='diffusion', solver=dict(name='heun'), steps=25, guidance=4.0, shift=2.0)
    config.optimizer = dict(name='adamw', learning_rate=2e-4, schedule='constant', warmup=1000)
    config.ema = dict(decay=0.9999)
    config.mesh = dict(data=-1)
    config.train = dict(
        steps=100_000, batch=128, log_every=100, held_out_every=5000, sample_every=5000, save_every=5000
    )
    if variant == 'tiny':
        config.data = dict(name='synthetic', resolution=16, captions=True, examples=32)
        config.conditioner.update(vocabulary=64, width=32, depth=1, heads=2)
        config.model.update(hidden=32, depth=2, heads=2)
        config.sampler.steps = 2
        config.optimizer.warmup = 1
        config.train.update(
            steps=3,
            batch=8,
            sample_batch=8,
            log_every=1,
            held_out_every=3,
            held_out_batches=1,
            sample_every=3,
            save_every=2,
        )
    return config
