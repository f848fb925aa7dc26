"""LlamaGen of captions (arXiv:2406.06525): size XL, 120 tokens read by FLAN-T5 XL, at 256 or 512 px.

For: published weights, to draw with or to go on training, and a TPU slice with a folder of images and a
`metadata.jsonl` of captions. As published: the tokenizer vq_ds16_t2i of 16,384 codes, one code after another
after the caption's, dropout 0.1, AdamW at an even 1e-4 for a batch of 256 with weight decay 0.05, clipping at
1, no averages; guidance 7.5 and the 1,000 likeliest codes. Otherwise than published, no caption is
exchanged for a shorter one, and the vector that stands for none is learned, which the authors leave at its
random draw.
The authors' files: --config.networks.tokenizer.init_from=vq_ds16_t2i.pt, of google/flan-t5-xl
--config.networks.text.init_from=FOLDER --config.conditioner.tokens=FOLDER, and to draw `--mode=sample
--weights=t2i_XL_stage1_256.pt`, of '512' t2i_XL_stage2_512.pt, to go on --config.networks.model.init_from.
Cost: `--mode=plan` prints parameters, FLOPs a step and memory a device before anything is rented.
Expect: nothing measured yet; configs/ar_shapes.py:text is the same system in small.
"""

from ml_collections import ConfigDict

VARIANTS = ('', '256', '512', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """'256' (also '') and '512' are published resolutions, 'tiny' is a miniature on synthetic data."""
    config = ConfigDict()
    resolution = 512 if variant == '512' else 256
    config.data = dict(name='folder', path='images', resolution=resolution, captions=True)
    config.held_out = dict(split='test')
    config.tokenizer = dict(
        name='vqgan',
        widths=(128, 128, 256, 256, 512),
        channels=256,
        kernel=1,
        bottleneck=dict(name='vq', codes=16_384, channels=8, distance='sphere'),
    )
    config.conditioner = dict(name='t5', size='xl', length=120, dtype='bfloat16')
    config.model = dict(name='llamagen', size='XL', dtype='bfloat16', remat='named')
    config.networks = dict(text=dict(dtype='bfloat16'), model=dict(ema=False))
    config.objective = dict(name='next_token', drop=0.1)
    config.sampler = dict(name='autoregressive', order=dict(name='raster'), guidance=7.5, top_k=1000)
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
    config.train = dict(
        steps=200_000,
        batch=256,
        threads=16,
        log_every=100,
        held_out_every=10_000,
        sample_every=10_000,
        save_every=5000,
        keep=3,
        keep_period=50_000,
    )
    if variant == 'tiny':
        config.data = dict(name='synthetic', resolution=16, captions=True, examples=32)
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
        config.conditioner = dict(
            name='t5', vocabulary=384, width=32, ff=48, depth=1, heads=2, head_width=16, length=24
        )
        config.networks = dict(text=dict(dtype='float32'))
        config.model.update(depth=2, hidden=32, heads=2, ff=64, dtype='float32')
        config.sampler.top_k = 10
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
