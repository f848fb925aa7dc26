"""Masked generation on ImageNet: MaskGIT (arXiv:2202.04200, as arXiv:2503.17076 builds it), and MaskBit.

For: published weights, to draw with or to go on training, and a TPU slice with a prepared TFDS
`imagenet2012`. As published: LlamaGen's tokenizer of 16,384 codes, 'base' (also '') and 'small' at 256 px and
'large' at 384, AdamW at 1e-4 for a batch of 256 with weight decay 0.03, clipping at 1, dropout 0.1, averages
over 0.999, the loss on all tokens, the schedule 'arccos', 32 steps of a Halton sequence, guidance even.
Otherwise than published, the learning rate falls over all steps, pictures are cut in their middle, and
attention's weights are not dropped.
The authors' files: --config.networks.tokenizer.init_from=vq_ds16_c2i.pt, and to draw `--mode=sample
--weights=ImageNet_256_base.pth`, to go on --config.networks.model.init_from=ImageNet_256_base.pth.
'maskbit' (arXiv:2409.16211) is its generator of 14 bits in two groups, with labels smoothed, 64 steps, and
guidance that grows as a cosine. The layers of its authors' tokenizer are not here: its bits are those of
this library's autoencoder with binary spherical quantization, which is trained first, so that the authors'
generator (maskbit_generator_14bit.bin) loads, and draws nothing with them.
Cost: `--mode=plan` prints parameters, FLOPs a step and memory a device before anything is rented. Encode
once: `--mode=cache --workdir=runs/cache`, then train with `--config.data.cache=runs/cache`.
Expect: nothing measured yet; the authors' FID-50k is 6.40 for 'small', 4.17 for 'base' and 2.59 for 'large',
and 1.62 for MaskBit of 14 bits.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'small', 'base', 'large', 'maskbit', 'tiny')
GUIDANCE = {'small': 2.0, 'base': 1.7, 'large': 1.5}


def get_config(variant: str = '') -> ConfigDict:
    """'base' (also ''), 'small' and 'maskbit' draw 256 px, 'large' 384; 'tiny' is a miniature."""
    size = variant if variant in GUIDANCE else 'base'
    config = ConfigDict()
    config.data = dict(
        name='tfds',
        dataset='imagenet2012',
        label_key='label',
        split='train',
        resolution=384 if size == 'large' else 256,
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
    config.model = dict(name='maskgit', size=size, dropout=0.1, dtype='bfloat16', remat='named')
    config.objective = dict(name='masked', schedule='arccos', drop=0.1, everywhere=True)
    config.sampler = dict(
        name='autoregressive',
        order=dict(name='masked', steps=32, schedule='arccos', surest='halton', ramp=0.0),
        guidance=GUIDANCE[size],
    )
    config.optimizer = dict(
        name='adamw', learning_rate=1e-4, schedule='cosine', warmup=2500, final=0.01, weight_decay=0.03
    )
    config.ema = dict(decay=0.999)
    config.mesh = dict(fsdp=-1)
    config.train = dict(
        steps=1_500_000,
        batch=256,
        threads=16,
        log_every=100,
        held_out_every=5000,
        sample_every=5000,
        save_every=5000,
        keep=3,
        keep_period=100_000,
    )
    if variant == 'maskbit':
        config.tokenizer.bottleneck = dict(name='bsq', channels=14)
        config.model = dict(name='maskbit', groups=2, dropout=0.1, dtype='bfloat16', remat='named')
        config.objective.smoothing = 0.1
        config.sampler.order = dict(
            name='masked', steps=64, schedule='arccos', noise=7.8, growth='cosine', ramp=3.0
        )
        config.sampler.guidance = 8.1
        config.optimizer.update(warmup=5000, weight_decay=0.045, options=dict(b2=0.96))
        config.train.update(steps=1_350_000, batch=1024)
    if variant == 'tiny':
        config.data = dict(name='synthetic', resolution=16, classes=1000, captions=False, examples=32)
        config.held_out.split = 'test'
        config.tokenizer = dict(
            name='vqgan',
            widths=(8, 8, 8),
            blocks=1,
            groups=4,
            attention=(2,),
            bottleneck=dict(name='bsq', channels=6),
        )
        config.model.update(groups=2, depth=2, hidden=32, heads=2, multiple=16, registers=4)
        config.sampler.order.steps = 4
        config.optimizer.warmup = 1
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
