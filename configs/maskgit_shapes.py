"""A small MaskGIT (arXiv:2202.04200) learns to draw single shapes by their labels, on a laptop's CPU.

For: masked generation from nothing, all tokens at once in a few steps, `--knobs=steps=8`, on the codes of
`configs/vq_shapes.py`, which is trained first, into runs/vq_shapes (or
--config.networks.tokenizer.init_from=RUN). 32 labels: a colour and a shape. 'fsq' is on the 64 codes of
`configs/vq_shapes.py:fsq` in runs/vq_shapes_fsq, 'bsq' likewise on codes of 2^18, each told as two tokens.
Expect: '' label 0.98 on 256 pictures, 27 minutes on one core beside other work; 'fsq', 'bsq' not trained yet.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'fsq', 'bsq', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """All but 'tiny' are for two CPU cores; that is a seconds-long miniature on codes of random weights."""
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
    config.model = dict(name='maskgit', depth=6, hidden=128, heads=4, multiple=64, scan=False)
    config.objective = dict(name='masked', drop=0.1)
    config.sampler = dict(name='autoregressive', order=dict(name='masked', steps=12), guidance=2.0)
    config.metric = dict(name='labels')
    config.optimizer = dict(
        name='muon', learning_rate=2e-3, schedule='cosine', warmup=50, options=dict(consistent_rms=0.5)
    )
    config.ema = dict(decay=0.98)
    config.mesh = dict(data=-1)
    config.train = dict(
        steps=1500, batch=64, log_every=100, held_out_every=500, sample_every=500, save_every=500
    )
    if variant in ('fsq', 'bsq'):
        config.networks.tokenizer.init_from = f'runs/vq_shapes_{variant}'
    if variant == 'fsq':
        config.tokenizer.bottleneck = dict(name='fsq', levels=(8, 5, 5, 5))
    if variant == 'bsq':
        config.tokenizer.bottleneck = dict(name='bsq', channels=18)
        config.model.groups = 2
    if variant == 'tiny':
        config.networks = dict()
        config.data.examples = 64
        config.data.test_examples = 32
        config.tokenizer.update(widths=(8, 8), groups=4)
        config.tokenizer.bottleneck.update(codes=32, channels=4, restart=2, start=1)
        config.model.update(depth=2, hidden=32, heads=2, multiple=16, registers=4, dropout=0.1)
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
