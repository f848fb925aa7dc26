"""A small classifier of the shapes' labels, whose features the Fréchet distance of shapes is measured in.

For: making the parameters that ship beside jaxgen/encoders/shapes_classifier.py, where
`python tests/encoders/keep_classifier.py RUN` puts them.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """'' is for two CPU cores, 'tiny' its seconds-long miniature."""
    config = ConfigDict()
    config.data = dict(name='shapes', resolution=32, examples=20_000, objects=(1, 1))
    config.held_out = dict(split='test')
    config.tokenizer = dict(name='pixels')
    config.conditioner = dict(name='labels')
    config.model = dict(name='jaxgen.encoders.shapes_classifier', trained=False)
    config.objective = dict(name='classification', pad=6)
    config.optimizer = dict(
        name='muon',
        learning_rate=2e-3,
        schedule='cosine',
        warmup=50,
        options=dict(consistent_rms=0.2),
        matrices=('kernel', 'features'),
    )
    config.mesh = dict(data=-1)
    config.train = dict(steps=2000, batch=128, log_every=100, held_out_every=500, save_every=1000)
    if variant == 'tiny':
        config.data.examples = 64
        config.data.test_examples = 32
        config.optimizer.warmup = 1
        config.train.update(steps=3, batch=8, log_every=1, held_out_every=3, held_out_batches=1, save_every=2)
    return config
