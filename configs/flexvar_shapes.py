"""A small FlexVAR (arXiv:2502.20313) learns to draw single shapes by their labels, on a laptop's CPU.

For: one network that draws by other scales than it was trained by, `'--config.sampler.schedule=(1,3,8)'`, and
at other sizes, `--size=36x32 --exact`. On the codes of `configs/vq_shapes.py:flex`, which is trained first,
into runs/vq_shapes_flex (or --config.networks.tokenizer.init_from=RUN). 32 labels: a colour and a shape.
Other sizes want a decoder that has seen them: `configs/vq_shapes.py:sizes`, trained into runs/vq_shapes_sizes
and given by --config.networks.tokenizer.init_from, is another for the same codes.
Expect: label 0.95 on 512 pictures; 41 minutes on one core beside other work, from latents that are cached
(`--mode=cache`). By other steps 0.84 (1,3,8) and 0.97 (all of 1 to 8). At other sizes, by the decoder of
'sizes': 0.90 at 36 px, 0.82 at 40, 0.75 at 24, 0.80 at 36x32, 0.70 at 40x32, 0.18 at 48x32; by that of 'flex'
0.35 at 36 px and 0.41 at 40, but 0.95 for 0.82 at 32.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """'' is for two CPU cores, 'tiny' its seconds-long miniature on codes of random weights."""
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
            name='vq',
            codes=1024,
            channels=16,
            scales=(1, 2, 3, 4, 6, 8),
            update='averages',
            decay=0.97,
            restart=50,
            start=200,
            k_means=True,
        ),
    )
    config.networks = dict(tokenizer=dict(init_from='runs/vq_shapes_flex'))
    config.conditioner = dict(name='labels')
    config.model = dict(name='flexvar', depth=6, hidden=128, heads=4, gate=0.1, side=16, drop_path=0.0)
    config.objective = dict(
        name='next_scale',
        drop=0.1,
        mistakes=0.4,
        schedules=((1, 2, 4, 8), (1, 2, 3, 5, 8), (1, 2, 4, 6, 8), (1, 3, 5, 7, 8), (1, 2, 3, 4, 5, 8)),
    )
    config.sampler = dict(name='autoregressive', order=dict(name='next_scale'), guidance=1.5, top_p=0.8)
    config.metric = dict(name='labels')
    config.optimizer = dict(
        name='muon', learning_rate=2e-3, schedule='cosine', warmup=50, options=dict(consistent_rms=0.5)
    )
    config.ema = dict(decay=0.98)
    config.mesh = dict(data=-1)
    config.train = dict(
        steps=1300, batch=64, log_every=100, held_out_every=500, sample_every=500, save_every=500
    )
    if variant == 'tiny':
        config.networks = dict()
        config.data.examples = 64
        config.data.test_examples = 32
        config.tokenizer.update(widths=(8, 8), groups=4)
        config.tokenizer.bottleneck.update(codes=32, channels=4, restart=2, start=1)
        config.objective.schedules = ((1, 2, 4, 8),)
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
