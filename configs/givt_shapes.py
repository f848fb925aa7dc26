"""A small GIVT (arXiv:2312.02116) learns to draw single shapes by their labels, on a laptop's CPU.

For: autoregression without codes, on the Gaussian latents of `configs/vq_shapes.py:kl`, which is trained
first, into runs/vq_shapes_kl (or --config.networks.tokenizer.init_from=RUN). One token after another, or with
'masked' all at once in a few steps, `--knobs=steps=8`. 32 labels: a colour and a shape.
Expect: '' label 0.98 on 256 pictures; 12 minutes on one core beside other work, from latents that are cached
(`--mode=cache`). 'masked' is not trained yet.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'masked', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """'' and 'masked' are for two CPU cores, 'tiny' is a miniature of the latter on random latents."""
    config = ConfigDict()
    config.data = dict(name='shapes', resolution=32, examples=100_000, objects=(1, 1))
    config.held_out = dict(split='test')
    config.tokenizer = dict(
        name='vqgan',
        widths=(64, 128),
        blocks=1,
        groups=16,
        attention=(),
        middle_attention=False,
        fold=2,
        bottleneck=dict(name='kl', channels=8, weight=0.03),
    )
    config.networks = dict(tokenizer=dict(init_from='runs/vq_shapes_kl'))
    config.conditioner = dict(name='labels')
    config.model = dict(name='givt', depth=6, hidden=128, heads=4, ff=512, mixtures=8, scan=False)
    config.objective = dict(name='next_token', drop=0.1)
    config.sampler = dict(name='autoregressive', order=dict(name='raster'), guidance=1.4, temperature=0.95)
    config.metric = dict(name='labels')
    config.optimizer = dict(
        name='muon', learning_rate=2e-3, schedule='cosine', warmup=50, options=dict(consistent_rms=0.5)
    )
    config.ema = dict(decay=0.98)
    config.mesh = dict(data=-1)
    config.train = dict(
        steps=1200, batch=64, log_every=100, held_out_every=500, sample_every=500, save_every=500
    )
    if variant in ('masked', 'tiny'):
        config.model.order = 'masked'
        config.objective.update(name='masked', furthest=0.7)
        config.sampler.order = dict(name='masked', steps=16, noise=10.0, ramp=0.0)
        config.sampler.update(guidance=1.1, temperature=1.0)
    if variant == 'tiny':
        config.networks = dict()
        config.data.examples = 64
        config.data.test_examples = 32
        config.tokenizer.update(widths=(8, 8), groups=4)
        config.tokenizer.bottleneck.channels = 4
        config.model.update(depth=2, hidden=32, heads=2, ff=64, mixtures=3, dropout=0.1)
        config.metric.prompts = 8
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
