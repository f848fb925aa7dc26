"""GIVT on ImageNet at 256 px (arXiv:2312.02116): causal, of the default and the large size, and masked.

For: a TPU slice with a prepared TFDS `imagenet2012`. As published: 16 x 16 latents of 16 channels of an
autoencoder with beta 5e-5 ('large': 1e-5), pictures mirrored, 16 Gaussians, Adam at 1e-3 for a batch of 8,192
with a decay of 1e-4 (masked: none), clipping at 1, a cosine after a tenth of 500 epochs, no averages; drawn
with 0.95 of the deviations and guidance of 1.4, masked in 16 steps with noise of 35 and guidance of 1.1 (the
authors' measure is one less). Otherwise than published, pictures are cut in their middle, dropout is of what
attention and MLP give alone, and there is no adapter.
The authors' networks: to draw `--mode=sample --weights=givt_imagenet_2012_causal_params.npz`, to go on
--config.networks.model.init_from=givt_imagenet_2012_causal_params.npz. Their
autoencoders are files of TensorFlow, which are not read: train one, by the objective of
`configs/vq_shapes.py:kl` with absolute=0 and square=0.5, and give --config.networks.tokenizer.init_from=RUN.
Expect: nothing measured yet; the authors' FID-50k is 3.35 causal and 4.53 masked.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'large', 'masked', 'tiny')
IMAGES = 1_281_167
BETA = 16**3 / (3 * 256**2)  # theirs is of sums over latents and pixels, ours of means


def get_config(variant: str = '') -> ConfigDict:
    """'' and 'large' are causal; 'tiny' is a miniature of '' on synthetic data."""
    batch = 8192
    steps = IMAGES * 500 // batch
    config = ConfigDict()
    config.data = dict(name='tfds', dataset='imagenet2012', label_key='label', split='train', resolution=256)
    config.held_out = dict(split='validation')
    config.tokenizer = dict(
        name='vqgan',
        widths=(128, 128, 256, 256, 512),
        attention=(),
        middle_attention=False,
        bottleneck=dict(name='kl', channels=16, weight=BETA * 5e-5),
        dtype='bfloat16',
    )
    config.conditioner = dict(name='labels', classes=1000)
    config.model = dict(name='givt', size='default', dropout=0.2, dtype='bfloat16', remat='named')
    config.objective = dict(name='next_token', drop=0.1)
    config.sampler = dict(name='autoregressive', order=dict(name='raster'), guidance=1.4, temperature=0.95)
    config.optimizer = dict(
        name='adamw',
        learning_rate=1e-3,
        schedule='cosine',
        warmup=steps // 10,
        weight_decay=1e-4,
        clip=1.0,
        options=dict(b2=0.95),
    )
    config.mesh = dict(fsdp=-1)
    config.networks = dict(model=dict(ema=False))
    config.train = dict(
        steps=steps,
        batch=batch,
        flip=True,
        threads=16,
        log_every=50,
        held_out_every=1000,
        sample_every=10_000,
        save_every=1000,
        keep=3,
        keep_period=10_000,
    )
    if variant == 'large':
        config.model.update(size='large', dropout=0.3)
        config.tokenizer.bottleneck.weight = BETA * 1e-5
    if variant == 'masked':
        config.model.update(order='masked', dropout=0.4)
        config.objective.update(name='masked', furthest=0.7)
        config.optimizer.weight_decay = 0.0
        config.sampler.order = dict(name='masked', steps=16, noise=35.0, ramp=0.0)
        config.sampler.update(guidance=1.1, temperature=1.0)
    if variant == 'tiny':
        config.data = dict(name='synthetic', resolution=16, classes=1000, captions=False, examples=32)
        config.held_out.split = 'test'
        config.tokenizer.update(widths=(8, 8, 8), blocks=1, groups=4)
        config.tokenizer.bottleneck.channels = 4
        config.model.update(depth=2, hidden=32, heads=2, ff=64, mixtures=3)
        config.optimizer.warmup = 1
        config.networks.model.ema = True
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
