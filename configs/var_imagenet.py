"""VAR on ImageNet (arXiv:2404.02905): depths 16 and 30 at 256 px, depth 36 at 512 px.

For: published weights, to draw with or to go on training, and a TPU slice with a prepared TFDS
`imagenet2012`. As published: the tokenizer vae_ch160v4096z32, width 64 x depth, AdamW at 1e-4 (from depth 30
on 8e-5) for a batch of 256 with weight decay 0.05, clipping at 2, a linear fall of the learning rate, 200 or
350 epochs, no averages; guidance 1.5 in the authors' measure, 900 codes, a nucleus of 0.96. Otherwise than
published, pictures are cut in their middle, and from depth 30 on the decay does not rise to 0.08.
The authors' files: --config.networks.tokenizer.init_from=vae_ch160v4096z32.pth, and to draw `--mode=sample
--weights=var_d16.pth`, to go on --config.networks.model.init_from=var_d16.pth.
Cost: `--mode=plan` prints parameters, FLOPs a step and memory a device before anything is rented. Encode
once: `--mode=cache --workdir=runs/cache`, then train with `--config.data.cache=runs/cache`.
'code' is CoDe (arXiv:2411.17787) of published weights, var_d30.pth and var_d16.pth: depth 30 drafts 8 scales,
depth 16 draws the last two, and it is the one that goes on training.
Expect: nothing measured yet; the authors' FID-50k is 3.55 for depth 16, 1.97 for 30, and 2.63 for 36 at 512.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'd16', 'd30', 'd36', 'code', 'tiny')
SCALES = {256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}
IMAGES = 1_281_167


def get_config(variant: str = '') -> ConfigDict:
    """'d16' (also ''), 'd30' and 'code' draw 256 px, 'd36' 512; 'tiny' is a miniature on synthetic data."""
    depth = {'d30': 30, 'd36': 36, 'code': 30}.get(variant, 16)
    resolution = 512 if depth == 36 else 256
    trained = 16 if variant == 'code' else depth
    batch, epochs = (1024, 350) if trained == 30 else (768, 350 if trained == 36 else 200)
    steps = IMAGES * epochs // batch
    config = ConfigDict()
    config.data = dict(
        name='tfds', dataset='imagenet2012', label_key='label', split='train', resolution=resolution
    )
    config.held_out = dict(split='validation')
    config.tokenizer = dict(name='vqgan', bottleneck=dict(name='residual', scales=SCALES[resolution]))
    config.conditioner = dict(name='labels', classes=1000)
    config.model = dict(
        name='var',
        depth=depth,
        shared=depth == 36,
        gate={16: 1e-3, 30: 1e-5, 36: 5e-6}[depth],
        dtype='bfloat16',
        remat='named',
    )
    config.objective = dict(name='next_scale', drop=0.1)
    config.sampler = dict(
        name='autoregressive', order=dict(name='next_scale'), guidance=2.5, top_k=900, top_p=0.96
    )
    config.optimizer = dict(
        name='adamw',
        learning_rate=(1e-4 if trained == 16 else 8e-5) * batch / 256,
        schedule='linear',
        warmup=steps // 50,
        final=0.1 if trained == 16 else 0.01,
        weight_decay=0.05,
        clip=2.0,
        options=dict(b1=0.9, b2=0.95),
        no_decay=('bias$', 'table$', '(^|/)(start|position|level|warmth|modulation)$'),
    )
    config.mesh = dict(fsdp=-1)
    config.networks = dict(model=dict(ema=False))
    config.train = dict(
        steps=steps,
        batch=batch,
        threads=16,
        log_every=100,
        held_out_every=5000,
        sample_every=5000,
        save_every=5000,
        keep=3,
        keep_period=50_000,
    )
    if variant == 'code':
        config.networks.model = dict(init_from='var_d30.pth')
        config.networks.refiner = dict(
            module=dict(name='var', depth=16, dtype='bfloat16', remat='named'),
            init_from='var_d16.pth',
            ema=False,
        )
        config.objective.network = 'refiner'
        config.sampler.order.update(refiner='refiner', drafted=8)
    if variant == 'tiny':
        config.data = dict(name='synthetic', resolution=16, classes=1000, captions=False, examples=32)
        config.held_out.split = 'test'
        config.tokenizer = dict(
            name='vqgan',
            widths=(8, 8, 8),
            blocks=1,
            groups=4,
            attention=(2,),
            bottleneck=dict(name='residual', codes=32, channels=4, scales=(1, 2, 4)),
        )
        config.model.update(depth=2, hidden=32, heads=2)
        config.sampler.update(top_k=10)
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
