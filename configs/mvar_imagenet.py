"""M-VAR on ImageNet at 256 px (arXiv:2411.10433): depths 12, 16, 20, 24 and 32.

For: published weights, to draw with or to go on training, and a TPU slice with a prepared TFDS
`imagenet2012`. As published: VAR's tokenizer vae_ch160v4096z32, width 64 x depth, AdamW at 1e-4 (depth 24 and
32: 8e-5) for a batch of 256 with clipping at 2, a linear fall of the learning rate, 200 to 350 epochs,
no averages; guidance 1.5 in the authors' measure, 900 codes, a nucleus of 0.96. Depth 32 is trained here as
their command for depth 30 says; pictures are cut in their middle, and the decay is the same throughout.
The authors' files: --config.networks.tokenizer.init_from=vae_ch160v4096z32.pth, and to draw `--mode=sample
--weights=d16.pth`, to go on --config.networks.model.init_from=d16.pth.
Expect: nothing measured yet; the authors' FID-50k is 1.78 for depth 32.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'd12', 'd16', 'd20', 'd24', 'd32', 'tiny')
EPOCHS = {12: 200, 16: 200, 20: 250, 24: 350, 32: 350}
GATES = {24: 1e-4, 32: 1e-5}
IMAGES = 1_281_167


def get_config(variant: str = '') -> ConfigDict:
    """'' is 'd16'; 'tiny' is a miniature on synthetic data."""
    depth = int(variant[1:]) if variant[:1] == 'd' else 16
    batch = 1024 if depth == 32 else 768
    steps = IMAGES * EPOCHS[depth] // batch
    config = ConfigDict()
    config.data = dict(name='tfds', dataset='imagenet2012', label_key='label', split='train', resolution=256)
    config.held_out = dict(split='validation')
    config.tokenizer = dict(name='vqgan', bottleneck=dict(name='residual'))
    config.conditioner = dict(name='labels', classes=1000)
    config.model = dict(
        name='mvar',
        depth=depth,
        gate=GATES.get(depth, 1e-3),
        unit_norm=depth > 20,
        dtype='bfloat16',
        remat='named',
    )
    config.objective = dict(name='next_scale', drop=0.1)
    config.sampler = dict(
        name='autoregressive', order=dict(name='next_scale'), guidance=2.5, top_k=900, top_p=0.96
    )
    config.optimizer = dict(
        name='adamw',
        learning_rate=(8e-5 if depth > 20 else 1e-4) * batch / 256,
        schedule='linear',
        warmup=steps // 50,
        final=0.01 if depth > 20 else 0.1,
        weight_decay=0.05,
        clip=2.0,
        options=dict(b1=0.9, b2=0.95),
        no_decay=('bias$', 'scale$', 'table$', '(^|/)(start|position|level|warmth)$'),
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
        config.model.update(depth=2, hidden=32, heads=2, head_width=8, state=8)
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
