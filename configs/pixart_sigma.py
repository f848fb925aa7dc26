"""PixArt-Sigma XL/2 (arXiv:2403.04692): alpha's network, 256 px to 2K, captions of 300 tokens.

For: published weights, to draw with or to go on training,

    python -m jaxgen.main --config=configs/pixart_sigma.py:1024 --weights=FOLDER --mode=sample --prompt="..."

and a TPU slice with a folder of images and a `metadata.jsonl` of captions. As published: positions scaled
with the resolution, SDXL's autoencoder, the authors' learning rate and clipping, the pipeline's
DPM-Solver++. The paper's compressed keys and values, which published weights are without, are had by
`--config.model.compress_ratio=2 --config.model.compress_layers="(14, 15, ...)"`, there from layer 14 on.
Not as published: AdamW for the authors' CAME, and squares for their aspect buckets.
Cost: `--mode=plan` prints parameters, FLOPs a step and memory a device before anything is rented.
Encode once, not in every step: `--mode=cache --workdir=runs/cache`, then train with
`--config.data.cache=runs/cache`.
Expect: nothing measured yet at this size; configs/quickstart.py is the same system in small, measured.
"""

from ml_collections import ConfigDict

VARIANTS = ('', '256', '512', '1024', '2K', 'tiny')

STAGES = {
    256: dict(steps=80_000, batch=1024),
    512: dict(steps=10_000, batch=1024),
    1024: dict(steps=5000, batch=384),
    2048: dict(steps=4000, batch=32),
}


def get_config(variant: str = '') -> ConfigDict:
    """'256' to '2K' are the published resolutions, '' is '1024', 'tiny' a miniature on synthetic data."""
    resolution = {'': 1024, 'tiny': 256, '2K': 2048}.get(variant) or int(variant)
    config = ConfigDict()
    config.data = dict(name='folder', path='images', resolution=resolution, captions=True)
    config.held_out = dict(split='test')
    config.tokenizer = dict(name='kl_vae', scale=0.13025, sample_size=1024, dtype='bfloat16')
    if resolution == 2048:
        config.tokenizer.decoding = 'tiled'
    config.conditioner = dict(name='t5', size='xxl', length=300, dtype='bfloat16')
    config.networks = dict(text=dict(dtype='bfloat16'))
    config.path = dict(name='vp', betas='linear')
    config.prediction = dict(output='noise', time='steps', learned_variance=True)
    config.model = dict(
        name='pixart',
        size='XL',
        patch=2,
        base_size=resolution // 16,
        interpolation=resolution / 512,
        dtype='bfloat16',
        remat='named',
    )
    config.objective = dict(name='diffusion', times='discrete', drop=0.1)
    config.sampler = dict(
        name='diffusion',
        solver=dict(name='dpm_solver'),
        spacing=dict(name='training_steps', placement='linspace', extra=True),
        steps=20,
        guidance=4.5,
    )
    config.optimizer = dict(
        name='adamw',
        learning_rate=2e-5,
        schedule='constant',
        warmup=1000,
        clip=0.01,
        options=dict(eps=1e-10),
    )
    config.ema = dict(decay=0.9999)
    config.mesh = dict(fsdp=-1)
    config.train = dict(
        **STAGES[resolution],
        threads=16,
        log_every=100,
        held_out_every=1000,
        sample_every=1000,
        save_every=1000,
        keep=3,
        keep_period=10_000,
    )
    if variant == 'tiny':
        config.data = dict(name='synthetic', resolution=16, captions=True, examples=32)
        config.tokenizer = dict(name='kl_vae', widths=(8, 8), blocks=1, groups=4, scale=0.13025)
        config.conditioner = dict(
            name='t5', vocabulary=384, width=32, ff=48, depth=1, heads=2, head_width=16, length=300
        )
        config.networks = dict(text=dict(dtype='float32'))
        config.model.update(
            hidden=48, depth=2, heads=2, base_size=4, compress_ratio=2, compress_layers=(1,), dtype='float32'
        )
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
