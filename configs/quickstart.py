"""Quick start: a small PixArt learns to draw captioned shapes, on a laptop's CPU.

For: a first look, on data the project draws itself; one or two objects at 32 px, 2.4 M parameters.
Cost: 12 minutes on two CPU cores, setting up included (125 images/s while it trains).
Expect: the error (of the predicted picture) on batches of 32, over all times and where t > 0.75:

    step    100   200   400   600   800   1200  1600  2000  2400
    error   .107  .055  .041  .031  .022  .015  .013  .012  .011
    t>0.75  .109  .058  .044  .032  .023  .016  .014  .013  .012

and on 256 held-out captions, half of them of two objects: everything right in 0.99 (size 1.00, colour 1.00,
shape 1.00, place 1.00, number of objects 1.00, background 1.00); 0.98 with guidance 2.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """'' is the quick start, 'tiny' its seconds-long miniature."""
    config = ConfigDict()
    config.data = dict(name='shapes', resolution=32, examples=20_000, objects=(1, 2))
    config.held_out = dict(split='test')
    config.tokenizer = dict(name='pixels')
    config.conditioner = dict(name='captions', length=28, width=128, depth=2, heads=4)
    config.path = dict(name='linear')
    # Flat pictures are simpler than noise: the picture itself is predicted.
    config.prediction = dict(output='data', time='thousand')
    # Unrolled layers are a tenth faster on a CPU than scanned ones. Gates that start open: after 300 steps at
    # t = 1 places were right in 0.42 of the pictures, with gates that start as published in 0.01 (one pair of
    # runs of a slightly larger network).
    config.model = dict(name='pixart', patch=4, hidden=128, depth=5, heads=4, open_start=True, scan=False)
    # Flat shapes show through much noise: the caption decides only at the noisiest times, so train there.
    config.objective = dict(name='diffusion', times='logit_normal', mean=3.0, spread=2.0, drop=0.1)
    config.sampler = dict(name='diffusion', solver=dict(name='euler'), steps=20, guidance=1.5, shift=4.0)
    config.metric = dict(name='alignment')
    config.optimizer = dict(
        name='muon', learning_rate=2e-3, schedule='cosine', warmup=50, options=dict(consistent_rms=0.5)
    )
    config.ema = dict(decay=0.98)
    config.mesh = dict(data=-1)
    config.train = dict(
        steps=2400, batch=32, log_every=100, held_out_every=800, sample_every=400, save_every=400
    )
    if variant == 'tiny':
        config.data.examples = 64
        config.data.test_examples = 32
        config.model.update(hidden=32, depth=2, heads=2)
        config.conditioner.update(width=32, depth=1, heads=2)
        config.metric.prompts = 8
        config.sampler.steps = 2
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
