"""LlamaGen on ImageNet (arXiv:2406.06525): sizes B and L at 256 px, XL, XXL and 3B at 384 px.

For: published weights, to draw with or to go on training, and a TPU slice with a prepared TFDS
`imagenet2012`. As published: the tokenizer vq_ds16_c2i of 16,384 codes, one code after another, dropout 0.1,
AdamW at an even 1e-4 for a batch of 256 with weight decay 0.05, clipping at 1, 300 epochs, no averages; the
guidance of the authors' figures, all codes to draw from. Otherwise than published, pictures are cut in their
middle, where the authors take ten cuts of each.
The authors' files: --config.networks.tokenizer.init_from=vq_ds16_c2i.pt, and to draw `--mode=sample
--weights=c2i_B_256.pt`, to go on --config.networks.model.init_from=c2i_B_256.pt.
Cost: `--mode=plan` prints parameters, FLOPs a step and memory a device before anything is rented. Encode
once: `--mode=cache --workdir=runs/cache`, then train with `--config.data.cache=runs/cache`.
Expect: nothing measured yet; the authors' FID-50k at 256 px is 5.46 for B and 3.80 for L, and of pictures of
384 px made smaller 2.62 for XL, 2.34 for XXL and 2.18 for 3B.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'b', 'l', 'xl', 'xxl', '3b', 'tiny')
GUIDANCE = {'b': 2.0, 'l': 2.0, 'xl': 1.75, 'xxl': 1.75, '3b': 1.65}
LARGE = ('xl', 'xxl', '3b')
STEPS = 1_281_167 * 300 // 256


def get_config(variant: str = '') -> ConfigDict:
    """'b' (also '') and 'l' draw 256 px, 'xl', 'xxl' and '3b' 384; 'tiny' is a miniature."""
    size = variant if variant in GUIDANCE else 'b'
    config = ConfigDict()
    config.data = dict(
        name='tfds',
        dataset='imagenet2012',
        label_key='label',
        split='train',
        resolution=384 if size in LARGE else 256,
    )
    config.held_out = dict(split='validation')
    config.tokenizer = dict(
        name='vqgan',
        widths=(128, 128, 256, 256, 512),
        channels=256,
        kernel=1,
        bottleneck=dict(name='vq', codes=16_384, channels=8, distance='sphere'),
    )
    config.conditioner = dict(name='labels', classes=1000)
    config.model = dict(name='llamagen', size=size.upper(), dtype='bfloat16', remat='named')
    config.objective = dict(name='next_token', drop=0.1)
    config.sampler = dict(name='autoregressive', order=dict(name='raster'), guidance=GUIDANCE[size])
    config.optimizer = dict(
        name='adamw',
        learning_rate=1e-4,
        schedule='constant',
        warmup=0,
        weight_decay=0.05,
        clip=1.0,
        options=dict(b1=0.9, b2=0.95),
        no_decay=('scale$',),
    )
    config.mesh = dict(fsdp=-1)
    config.networks = dict(model=dict(ema=False))
    config.train = dict(
        steps=STEPS,
        batch=256,
        threads=16,
        log_every=100,
        held_out_every=5000,
        sample_every=5000,
        save_every=5000,
        keep=3,
        keep_period=50_000,
    )
    if variant == 'tiny':
        config.data = dict(name='synthetic', resolution=16, classes=1000, captions=False, examples=32)
        config.held_out.split = 'test'
        config.tokenizer = dict(
            name='vqgan',
            widths=(8, 8, 8),
            blocks=1,
            channels=8,
            groups=4,
            attention=(2,),
            kernel=1,
            bottleneck=dict(name='vq', codes=32, channels=4),
        )
        config.model.update(depth=2, hidden=32, heads=2, ff=64)
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
