"""Reflow of the quick start: its own pairs of noise and picture, learnt as straight lines for two steps.

For: few steps. The first flow is the quick start's; with configs/quickstart.py and runs/quickstart,
--mode=search --config.search.name=pairs --config.search.count=4096 --knobs=steps=16
draws the pairs that this config reads, with the quick start's guidance in them.
Cost: 4 minutes for the pairs, 3 for training, on two CPU cores.
Expect, of pairs drawn with guidance 2, on 256 held-out captions: alignment 0.98 at 1 Euler step and at 2 (the
first flow with guidance 2: 0.17 and 0.40; without: 0.996 and 0.988). These captions leave nothing open, so
that only the guidance is left to become straight; tests/search/straighten.py has a flow that has to choose.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """'' goes on from runs/quickstart, 'tiny' from runs/quickstart_tiny."""
    first = 'runs/quickstart_tiny' if variant == 'tiny' else 'runs/quickstart'
    config = ConfigDict()
    config.data = dict(name='pairs', path=f'{first}/pairs', resolution=32)
    config.held_out = dict(split='test')
    config.tokenizer = dict(name='pixels')
    config.conditioner = dict(name='captions', length=28, width=128, depth=2, heads=4)
    config.path = dict(name='linear')
    config.prediction = dict(output='data', time='thousand')
    config.model = dict(name='pixart', patch=4, hidden=128, depth=5, heads=4, scan=False)
    config.networks = dict(model=dict(init_from=first), text=dict(init_from=first))
    # One and two steps ask for pictures at t = 1 and 1 / 2: weight those, not the last details.
    config.objective = dict(name='reflow', times='uniform', low=0.3)
    # The pairs have the guidance in them.
    config.sampler = dict(name='diffusion', solver=dict(name='euler'), steps=2, guidance=1.0)
    config.metric = dict(name='alignment')
    config.optimizer = dict(
        name='muon', learning_rate=1e-3, schedule='cosine', warmup=50, options=dict(consistent_rms=0.5)
    )
    config.ema = dict(decay=0.99)
    config.mesh = dict(data=-1)
    config.train = dict(
        steps=700,
        batch=32,
        log_every=50,
        held_out_every=350,
        held_out_batches=2,
        sample_every=350,
        save_every=350,
    )
    if variant == 'tiny':
        config.model.update(hidden=32, depth=2, heads=2)
        config.conditioner.update(width=32, depth=1, heads=2)
        config.metric.prompts = 8
        config.data.holdout = 0.25
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
