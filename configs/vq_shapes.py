"""A multi-scale tokenizer for shapes, from nothing: 32 px in 85 tokens over four scales, of 1,024 codes.

For: the codes that next-scale models of shapes learn; as VAR's, residual over 1, 2, 4 and 8 a side, with a
codebook of running averages that begins with k-means and whose unused codes begin anew. 'flex' is of scales
that do not build on each other, as FlexVAR's, and 'sizes' goes on with its decoder alone, from
runs/vq_shapes_flex, at 40 px and on grids of 4 to 10: the codes stay, and pictures of many sizes are made of
them. 'fsq' and 'bsq' have one scale of 64 tokens and codebooks that are not learned: 1,000 codes of four
levels, 2^18 codes of bits. 'kl' has no codes but Gaussian latents, for GIVT.
A discriminator is added as in 'tiny'; LPIPS by objective.perceptual and a network 'lpips' of the module
'jaxgen.encoders.lpips' whose init_from is 'vgg16.pth,lpips.pth', torchvision's file and LPIPS's own.
Expect: on held-out pictures, read from the averages, 15 minutes on two cores, 85 to 105 images a second:

    step       500   1000   1500   2000   2500
    PSNR      32.3   36.3   38.2   39.1   39.6
    SSIM      .972   .987   .991   .993   .994
    usage      .98    .98    .98    .97    .98
    Fréchet    228     44     22     16     15

and in training all 1,024 codes in use from the first hundred quantized steps on. Of 300 pictures of single
objects, given back, the objects' colour and shape are read in all (metrics/labels.py). 'flex' has 32.8 dB and
all codes in use, 'sizes' 34.6 dB at 40 px (28 minutes on one core beside other work), 'kl' 35.7 dB; 'fsq' and
'bsq' are not trained yet.
"""

from ml_collections import ConfigDict

VARIANTS = ('', 'flex', 'sizes', 'fsq', 'bsq', 'kl', 'tiny')


def get_config(variant: str = '') -> ConfigDict:
    """All but 'tiny' are for two CPU cores, 'tiny' is its seconds-long miniature, with a discriminator."""
    config = ConfigDict()
    config.data = dict(name='shapes', resolution=32, examples=20_000, objects=(1, 2))
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
            name='residual',
            codes=1024,
            channels=16,
            scales=(1, 2, 4, 8),
            update='averages',
            decay=0.97,
            restart=50,
            start=200,
            k_means=True,
        ),
    )
    config.networks = dict(features=dict(module=dict(name='jaxgen.encoders.shapes_classifier')))
    config.conditioner = dict(name='pictures')
    config.objective = dict(name='reconstruction', absolute=5.0, square=10.0, perceptual=0.0)
    config.sampler = dict(name='reconstruction')
    config.metric = dict(name='reconstruction')
    config.optimizer = dict(
        name='muon',
        learning_rate=2e-3,
        schedule='cosine',
        warmup=100,
        options=dict(consistent_rms=0.2),
        matrices=('(encoder|decoder|discriminator)/.*kernel',),
    )
    config.ema = dict(decay=0.99)
    config.mesh = dict(data=-1)
    config.train = dict(
        steps=2500, batch=32, log_every=100, held_out_every=500, sample_every=500, save_every=500
    )
    if variant == 'flex':
        config.tokenizer.bottleneck.update(name='vq', scales=(1, 2, 3, 4, 6, 8))
        config.train.steps = 1500
    if variant == 'sizes':
        config.data.resolution = 40
        config.networks.tokenizer = dict(
            init_from='runs/vq_shapes_flex', trainable=('(decoder|from_latents)/.*',)
        )
        config.tokenizer.bottleneck = dict(
            name='vq', codes=1024, channels=16, scales=(4, 6, (8, 7), 7, (8, 9), 8, 9, (10, 8), 10)
        )
        config.train.update(steps=1200, batch=16)
    if variant == 'fsq':
        config.tokenizer.bottleneck = dict(name='fsq', levels=(8, 5, 5, 5))
    if variant == 'bsq':
        config.tokenizer.bottleneck = dict(name='bsq', channels=18)
    if variant == 'kl':
        config.tokenizer.bottleneck = dict(name='kl', channels=8, weight=0.03)
        config.train.steps = 1000
    if variant == 'tiny':
        config.data.examples = 64
        config.data.test_examples = 32
        config.tokenizer.update(widths=(8, 8), groups=4)
        config.tokenizer.bottleneck.update(codes=32, channels=4, restart=2, start=1)
        config.objective.update(adversarial=0.1, start=1, r1=1.0, lecam=0.1)
        config.networks.discriminator = dict(
            module=dict(name='patch_discriminator', width=8, depth=1, groups=4), ema=False
        )
        config.optimizer.warmup = 1
        config.train.update(
            steps=3, batch=8, log_every=1, held_out_every=3, held_out_batches=1, sample_every=3, save_every=2
        )
        config.metric.prompts = 8
    return config
