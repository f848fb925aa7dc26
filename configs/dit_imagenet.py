"""DiT-XL/2 on ImageNet (arXiv:2212.09748): 28 layers, width 1152, 16 heads, at 256 and 512 px.

For: published weights, to draw with or to go on training, and a TPU slice with a prepared TFDS
`imagenet2012`. As published: Stable Diffusion's autoencoder, the linear betas, noise prediction with learned
variance, AdamW at 1e-4 without decay, batch 256, EMA 0.9999, the pipeline's DDIM and guidance. The paper's
figures are drawn with `--config.sampler.solver.name=ddpm --config.sampler.guided_channels=3` and the knobs
`steps=250,guidance=1.5`.
Cost: `--mode=plan` prints parameters, FLOPs a step and memory a device before anything is rented.
Encode once, not in every step: `--mode=cache --workdir=runs/cache`, then train with
`--config.data.cache=runs/cache`.
Expect: nothing measured yet; the paper's FID-50k is 2.27 at 256 px after 7 M steps, 3.04 at 512 after 3 M.
"""

from ml_collections import ConfigDict

VARIANTS = ('', '256', '512', 'pod', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """'256' (also '') and '512' are the published resolutions; 'pod' is 256 px with batch 4096 for v5e:16x16,
    where little is left to compute beside what is sent; 'tiny' a miniature on synthetic data."""
    resolution = 512 if variant == '512' else 256
    config = ConfigDict()
    config.data = dict(
        name='tfds', dataset='imagenet2012', label_key='label', split='train', resolution=resolution
    )
    config.held_out = dict(split='validation')
    config.tokenizer = dict(name='kl_vae', dtype='bfloat16')
    config.conditioner = dict(name='labels', classes=1000)
    config.path = dict(name='vp', betas='linear')
    config.prediction = dict(output='noise', time='steps', learned_variance=True)
    config.model = dict(
        name='dit', size='XL', patch=2, base_size=resolution // 16, dtype='bfloat16', remat='named'
    )
    config.objective = dict(name='diffusion', times='discrete', drop=0.1)
    config.sampler = dict(
        name='diffusion',
        solver=dict(name='ddim', eta=0.0),
        spacing=dict(name='training_steps', placement='leading'),
        steps=50,
        guidance=4.0,
    )
    config.optimizer = dict(name='adamw', learning_rate=1e-4, schedule='constant', weight_decay=0.0, clip=0.0)
    config.ema = dict(decay=0.9999)
    config.mesh = dict(fsdp=-1)
    config.train = dict(
        steps=3_000_000 if resolution == 512 else 7_000_000,
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
    if variant == 'pod':
        config.mesh = dict(data=16, fsdp=16)
        config.model.scan = 2  # a layer's parameters are fetched during the one before
        config.train.update(
            batch=4096,
            sample_batch=256,
            compiler=dict(
                # Several sums and gathers beside one product; they do not go with scattered sums.
                xla_tpu_async_collective_fusion_fuse_multiple_collectives=True,
                xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter=False,
                xla_enable_async_reduce_scatter_fusion=False,
            ),
        )
    if variant == 'tiny':
        config.data = dict(name='synthetic', resolution=16, classes=1000, captions=False, examples=32)
        config.held_out.split = 'test'
        config.tokenizer = dict(name='kl_vae', widths=(8, 8), blocks=1, groups=4)
        config.model.update(hidden=32, depth=2, heads=2, base_size=4)
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
