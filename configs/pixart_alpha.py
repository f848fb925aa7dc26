"""PixArt-alpha XL/2 at 256 px (arXiv:2310.00426) at its published size: 28 layers, width 1152, 16 heads.

For: a TPU slice and a folder of images with a `metadata.jsonl` of captions. As published: adaLN-single,
captions of at most 120 tokens of width 4096, cross-attention, learned variance, AdamW at 2e-5 with decay
0.03. Not as published yet: until the library carries T5 and the autoencoder, captions are read by a text
transformer that trains with the model, and latents are pixels folded 8 x 8 into channels (the same 256
tokens; first and last layer are the wider for it).
Cost: `--mode=plan` prints parameters, FLOPs a step and memory a device before anything is rented.
Expect: nothing measured yet at this size; configs/quickstart.py is the same system in small, measured.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """'' is the recipe, 'tiny' its miniature on synthetic data."""
    config = ConfigDict()
    config.data = dict(name='folder', path='images', resolution=256, captions=True)
    config.held_out = dict(split='test')
    config.tokenizer = dict(name='pixels', fold=8)
    config.conditioner = dict(
        name='captions', vocabulary=32_768, length=120, width=4096, depth=1, heads=64, dtype='bfloat16'
    )
    config.path = dict(name='vp', betas='linear')
    config.prediction = dict(output='noise', time='steps', learned_variance=True)
    config.model = dict(name='pixart', size='XL', patch=2, base_size=16, dtype='bfloat16', remat='named')
    config.objective = dict(name='diffusion', times='discrete', drop=0.1)
    config.sampler = dict(name='diffusion', solver=dict(name='ddim', eta=0.0), steps=50, guidance=4.5)
    config.optimizer = dict(
        name='adamw',
        learning_rate=2e-5,
        schedule='constant',
        warmup=1000,
        weight_decay=0.03,
        clip=0.01,
        options=dict(eps=1e-10),
    )
    config.ema = dict(decay=0.9999)
    config.mesh = dict(fsdp=-1)
    config.train = dict(
        steps=300_000,
        batch=1024,
        threads=16,
        log_every=100,
        held_out_every=10_000,
        sample_every=10_000,
        save_every=5000,
        keep=3,
        keep_period=50_000,
    )
    if variant == 'tiny':
        config.data = dict(name='synthetic', resolution=32, captions=True, examples=32)
        config.conditioner.update(vocabulary=64, width=32, depth=1, heads=2)
        config.model.update(hidden=48, depth=2, heads=2)
        config.sampler.steps = 2
        config.optimizer.warmup = 1
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
