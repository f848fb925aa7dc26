"""A small VAR (arXiv:2404.02905) learns to draw single shapes by their labels, on a laptop's CPU.

For: next-scale prediction from nothing, on the codes of `configs/vq_shapes.py`, which is trained first, into
runs/vq_shapes (or --config.networks.tokenizer.init_from=RUN). 32 labels: a colour and a shape.
'code' is CoDe (arXiv:2411.17787): beside the network of runs/var_shapes, which stays as it is, a refiner of a
sixth of its size learns; it draws all scales but the first `sampler.order.drafted`.
Expect: label 0.92 on 256 pictures, 0.925 on 1,024 others; 26 minutes on two cores. Without the mistakes that
it is told in training some 0.07 less.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'code', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """'' and 'code' are for two CPU cores, 'tiny' is a seconds-long miniature on codes of random weights."""
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
        bottleneck=dict(
            name='residual',
            codes=1024,
            channels=16,
            scales=(1, 2, 4, 8),
            update='averages',
            decay=0.97,
            restart=50,
            start=200,
            k_means=True,
        ),
    )
    config.networks = dict(tokenizer=dict(init_from='runs/vq_shapes'))
    config.conditioner = dict(name='labels')
    config.model = dict(name='var', depth=6, hidden=128, heads=4, gate=0.1, drop_path=0.0, scan=False)
    config.objective = dict(name='next_scale', drop=0.1, mistakes=0.4)
    config.sampler = dict(name='autoregressive', order=dict(name='next_scale'), guidance=1.5, top_p=0.6)
    config.metric = dict(name='labels')
    config.optimizer = dict(
        name='muon', learning_rate=2e-3, schedule='cosine', warmup=50, options=dict(consistent_rms=0.5)
    )
    config.ema = dict(decay=0.98)
    config.mesh = dict(data=-1)
    config.train = dict(
        steps=2500, batch=64, log_every=100, held_out_every=500, sample_every=500, save_every=500
    )
    if variant == 'code':
        config.networks.model = dict(init_from='runs/var_shapes')
        config.networks.refiner = dict(
            module=dict(name='var', depth=3, hidden=64, heads=2, gate=0.1, drop_path=0.0, scan=False)
        )
        config.objective.network = 'refiner'
        config.sampler.order.update(refiner='refiner', drafted=2)
    if variant == 'tiny':
        config.networks = dict()
        config.data.examples = 64
        config.data.test_examples = 32
        config.tokenizer.update(widths=(8, 8), groups=4)
        config.tokenizer.bottleneck.update(codes=32, channels=4, restart=2, start=1)
        config.model.update(depth=2, hidden=32, heads=2, drop_path=0.1)
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
