"""PixArt-alpha XL/2 (arXiv:2310.00426): 28 layers, width 1152, 16 heads, 120 tokens read by T5 XXL.

For: published weights, to draw with or to go on training,

    python -m jaxgen.main --config=configs/pixart_alpha.py:1024 --weights=FOLDER --mode=sample --prompt="..."

and a TPU slice with a folder of images and a `metadata.jsonl` of captions. As published: adaLN-single,
learned variance, Stable Diffusion's autoencoder, AdamW at 2e-5 with decay 0.03, the batches of 64 GPUs (at
1024 px 32), the pipeline's DPM-Solver++; '1024' is told the size and aspect of pictures. Not as published: it
trains on squares, where the authors' stage at 1024 px takes aspect buckets.
Cost: `--mode=plan` prints parameters, FLOPs a step and memory a device before anything is rented.
Expect: nothing measured yet at this size; configs/quickstart.py is the same system in small, measured.
"""

from ml_collections import ConfigDict

VARIANTS = ('', '256', '512', '1024', 'tiny')

# Steps and batch of the paper's last stage at each resolution; positions are those of 512 px at 1024.
STAGES = {
    256: dict(steps=90_000, batch=176 * 64),
    512: dict(steps=100_000, batch=38 * 64),
    1024: dict(steps=16_000, batch=12 * 32),
}


def get_config(variant: str = '') -> ConfigDict:
    """'256' (also ''), '512' and '1024' are published resolutions, 'tiny' a miniature on synthetic data."""
    resolution = 256 if variant in ('', 'tiny') else int(variant)
    config = ConfigDict()
    config.data = dict(name='folder', path='images', resolution=resolution, captions=True)
    config.held_out = dict(split='test')
    config.tokenizer = dict(name='kl_vae', dtype='bfloat16')
    config.conditioner = dict(name='t5', size='xxl', length=120, sizes=resolution == 1024, dtype='bfloat16')
    config.networks = dict(text=dict(dtype='bfloat16'))
    config.path = dict(name='vp', betas='linear')
    config.prediction = dict(output='noise', time='steps', learned_variance=True)
    config.model = dict(
        name='pixart',
        size='XL',
        patch=2,
        base_size=resolution // 16,
        interpolation=max(resolution / 512, 1.0),
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
        weight_decay=0.03,
        clip=0.01,
        options=dict(eps=1e-10),
    )
    config.ema = dict(decay=0.9999)
    config.mesh = dict(fsdp=-1)
    config.train = dict(
        **STAGES[resolution],
        threads=16,
        log_every=100,
        held_out_every=10_000,
        sample_every=10_000,
        save_every=5000,
        keep=3,
        keep_period=50_000,
    )
    if variant == 'tiny':
        config.data = dict(name='synthetic', resolution=16, captions=True, examples=32)
        config.tokenizer = dict(name='kl_vae', widths=(8, 8), blocks=1, groups=4)
        config.conditioner = dict(
            name='t5', vocabulary=384, width=32, ff=48, depth=1, heads=2, head_width=16, sizes=True
        )
        config.networks = dict(text=dict(dtype='float32'))
        config.model.update(hidden=48, depth=2, heads=2, base_size=4, dtype='float32')
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
