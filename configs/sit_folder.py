"""A class-conditional SiT (arXiv:2401.08740) on a folder of one's own images: DiT's network, straight flow.

For: --config.data.path=/my/images with one subfolder a class. The linear path, velocity prediction in
SiT's own time (from noise to data), Heun's method with guidance. Pixels at 64 px, SiT-S/4.
Cost: as dit_folder; `--mode=plan` prints it for your machine.
Expect: nothing measured yet at this size.
`:tiny` runs on synthetic data in seconds.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

VARIANTS = ('', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """'' is the recipe, 'tiny' its miniature."""
    config = ConfigDict()
    config.data = dict(name='folder', path='images', resolution=64, crop='random')
    config.held_out = dict(split='test')
    config.tokenizer = dict(name='pixels', fold=1)
    config.conditioner = dict(name='labels', classes=placeholder(int))  # None: counted from the folder
    config.path = dict(name='linear')
    config.prediction = dict(output='velocity', time='reversed')
    config.model = dict(name='dit', size='S', patch=4, dtype='bfloat16', remat='none')
    config.objective = dict(name='diffusion', times='uniform', drop=0.1)
    config.sampler = dict(name='diffusion', solver=dict(name='heun'), steps=25, guidance=3.0)
    config.optimizer = dict(name='adamw', learning_rate=2e-4, schedule='constant', warmup=1000)
    config.ema = dict(decay=0.9999)
    config.mesh = dict(data=-1)
    config.train = dict(
        steps=100_000,
        batch=128,
        flip=True,
        log_every=100,
        held_out_every=5000,
        sample_every=5000,
        save_every=5000,
    )
    if variant == 'tiny':
        config.data = dict(name='synthetic', resolution=16, classes=3, captions=False, examples=32)
        config.model.update(hidden=32, depth=2, heads=2, dtype='float32')
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
