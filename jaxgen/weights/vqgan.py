"""The published names of VAR's tokenizer (2404.02905), and of LlamaGen's (2406.06525) and FlexVAR's.

VAR's convolutional names are CompVis', but for queries, keys and values published as one; LlamaGen counts the
decoder's levels in the order they run. What the codes were used for in training ('ema_vocab_hit_SV',
'codebook_used') is left out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.tokenizers.bottlenecks import residual, vq
from jaxgen.tokenizers.bottlenecks.residual import ResidualQuantizer
from jaxgen.tokenizers.vqgan import Autoencoder
from jaxgen.weights.kl_vae import COMPVIS, Names, coder_rows
from jaxgen.weights.names import CONV, CONV_1X1, SAME, NameMap, Row, Transform
from jaxgen.weights.options import options

VAR, LLAMAGEN = 'VQVAE', 'VQModel'
CLASSES = (VAR, LLAMAGEN)

_DEFAULTS = {
    'vocab_size': 4096,
    'z_channels': 32,
    'ch': 128,
    'beta': 0.25,
    'using_znorm': False,
    'quant_conv_ks': 3,
    'quant_resi': 0.5,
    'share_quant_resi': 4,
    'v_patch_nums': residual.SCALES,
}
_FIXED = {'dropout': 0.0, 'default_qresi_counts': 0}
_LEVELS = (1, 1, 2, 2, 4)
_OF_TRAINING = ('quantize.ema_vocab_hit_SV', 'quantize.codebook_used')
_LLAMAGEN_DEFAULTS = {
    'codebook_size': 16384,
    'codebook_embed_dim': 8,
    'codebook_l2_norm': True,
    'commit_loss_beta': 0.25,
    'encoder_ch_mult': _LEVELS,
    'decoder_ch_mult': _LEVELS,
    'z_channels': 256,
}
_LLAMAGEN_FIXED = {'dropout_p': 0.0, 'entropy_loss_ratio': 0.0}
_LLAMAGEN_WIDTH, _LLAMAGEN_SIDE = 128, 256
_LLAMAGEN_NAMES = Names(
    down='conv_blocks.{}',
    up='conv_blocks.{}',
    block='res.{}',
    attention='attn.{}',
    downsample='downsample.conv',
    upsample='upsample.conv',
    middle_blocks=('mid.0', 'mid.2'),
    middle_attention='mid.1',
    shortcut='nin_shortcut',
    norm_out='norm_out',
    attention_norm='norm',
    projections=({'query': 'q', 'key': 'k', 'value': 'v', 'out': 'proj_out'},),
    matrix=CONV_1X1,
    up_from_finest=False,
)
# Queries, keys and values as one convolution of one pixel.
_FUSED = Transform(
    lambda a: tuple(part[:, :, 0, 0].T for part in np.split(a, 3)),
    lambda *each: np.concatenate([part.T for part in each])[:, :, None, None],
)
_FUSED_BIAS = Transform(lambda a: tuple(np.split(a, 3)), lambda *each: np.concatenate(each))


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of tokenizers.vqgan.build for the arguments of the authors' class."""
    if published.get('_class_name') == LLAMAGEN:
        return _from_llamagen(published)
    given = options(published, defaults=_DEFAULTS, fixed=_FIXED, unused=('test_mode',))
    scales, share = tuple(given['v_patch_nums']), abs(given['quant_resi'])
    bottleneck = residual.build(
        given['vocab_size'],
        given['z_channels'],
        scales,
        given['share_quant_resi'],
        share if share > 1e-6 else 0.0,
        'cosine' if given['using_znorm'] else 'euclidean',
        given['beta'],
    )
    return {
        'resolution': scales[-1] * 2 ** (len(_LEVELS) - 1),
        'bottleneck': bottleneck,
        'widths': tuple(given['ch'] * factor for factor in _LEVELS),
        'kernel': given['quant_conv_ks'],
    }


def to_config(network: Autoencoder) -> dict[str, Any]:
    """The arguments of the authors' class for a network."""
    bottleneck = network.bottleneck
    if type(bottleneck) is vq.VectorQuantizer and network.widths[0] == _LLAMAGEN_WIDTH and network.fold == 1:
        return _to_llamagen(network)
    if not isinstance(bottleneck, ResidualQuantizer) or network.fold != 1:
        raise ValueError("only VAR's and LlamaGen's tokenizers have a published form, and this is neither.")
    return {
        '_class_name': VAR,
        'vocab_size': bottleneck.codes,
        'z_channels': bottleneck.channels,
        'ch': network.widths[0],
        'beta': bottleneck.commitment,
        'using_znorm': bottleneck.distance == 'cosine',
        'quant_conv_ks': network.kernel,
        'quant_resi': bottleneck.share,
        'share_quant_resi': bottleneck.convolutions,
        'v_patch_nums': [rows for rows, _ in bottleneck.scales],
        **_FIXED,
    }


def inputs(network: Autoencoder) -> tuple[np.ndarray, ...]:
    """The least that the network reads: the image of one latent."""
    return (np.zeros((1, network.factor, network.factor, 3), np.float32),)


def layouts(network: Autoencoder) -> dict[str, NameMap]:
    """The names of VAR's authors, or where nothing is residual LlamaGen's."""
    shared = network.widths, network.blocks, network.attention, network.middle_attention
    alone = type(network.bottleneck) is vq.VectorQuantizer
    names = _LLAMAGEN_NAMES if alone else COMPVIS
    coders = [row for decoder in (False, True) for row in coder_rows(names, *shared, decoder=decoder)]
    coders = coders if alone else _fused(coders)
    rows = [*coders, Row('quantize.embedding.weight', ('bottleneck/codebook/table',), SAME)]
    matrix = CONV if network.kernel == 3 else CONV_1X1
    rows += _pair('quant_conv', 'to_latents', matrix)
    rows += _pair('post_quant_conv', 'from_latents', matrix)
    bottleneck = network.bottleneck
    convolutions = getattr(bottleneck, 'convolutions', 0) if getattr(bottleneck, 'share', 0) else 0
    for number in range(convolutions):
        # Where all scales have one, they may also be published without a name.
        for name in ('qresi',) if convolutions == 1 else (f'qresi_ls.{number}', f'{number}'):
            rows += _pair(f'quantize.quant_resi.{name}', f'bottleneck/phi_{number}/convolution', CONV)
    return {'authors': NameMap(tuple(rows), _OF_TRAINING)}


def _from_llamagen(published: Mapping[str, Any]) -> dict[str, Any]:
    given = options(
        published, defaults=_LLAMAGEN_DEFAULTS, fixed=_LLAMAGEN_FIXED, unused=('codebook_show_usage',)
    )
    levels = tuple(given['encoder_ch_mult'])
    if levels != tuple(given['decoder_ch_mult']):
        raise ValueError(
            f'VQModel with encoder_ch_mult={levels} and another decoder_ch_mult is not implemented; they '
            'have to be equal'
        )
    distance = 'sphere' if given['codebook_l2_norm'] else 'euclidean'
    return {
        'resolution': _LLAMAGEN_SIDE,
        'bottleneck': vq.build(
            given['codebook_size'],
            given['codebook_embed_dim'],
            distance=distance,
            commitment=given['commit_loss_beta'],
        ),
        'widths': tuple(_LLAMAGEN_WIDTH * factor for factor in levels),
        'channels': given['z_channels'],
        'attention': (len(levels) - 1,),
        'kernel': 1,
    }


def _to_llamagen(network: Autoencoder) -> dict[str, Any]:
    bottleneck = network.bottleneck
    levels = [width // _LLAMAGEN_WIDTH for width in network.widths]
    return {
        '_class_name': LLAMAGEN,
        'codebook_size': bottleneck.codes,
        'codebook_embed_dim': bottleneck.channels,
        'codebook_l2_norm': bottleneck.distance == 'sphere',
        'commit_loss_beta': bottleneck.commitment,
        'encoder_ch_mult': levels,
        'decoder_ch_mult': levels,
        'z_channels': network.channels,
        **_LLAMAGEN_FIXED,
    }


def _pair(theirs: str, ours: str, matrix: Transform) -> list[Row]:
    return [
        Row(f'{theirs}.weight', (f'{ours}/kernel',), matrix),
        Row(f'{theirs}.bias', (f'{ours}/bias',), SAME),
    ]


def _fused(rows: list[Row]) -> list[Row]:
    """The rows of a coder with queries, keys and values as one."""
    made = []
    for row in rows:
        before, _, leaf = row.theirs.rpartition('.')
        before, _, part = before.rpartition('.')
        attends = '.attn' in row.theirs and part in ('q', 'k', 'v')
        if not attends:
            made.append(row)
        elif part == 'q':
            names = ('query', 'key', 'value')
            ours = tuple(row.ours[0].replace('/query/', f'/{name}/') for name in names)
            made.append(Row(f'{before}.qkv.{leaf}', ours, _FUSED if leaf == 'weight' else _FUSED_BIAS))
    return made
