"""AutoencoderKL's published names: diffusers' and CompVis' (latent diffusion, 2112.10752).

Folders of 2022 name the attention's projections query, key, value, proj_attn. CompVis' names, which the
tokenizers of the VQGAN family share, count the decoder's levels from the finest as here, diffusers' in the
order they run.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.tokenizers.kl_vae import AutoencoderKL
from jaxgen.weights.names import CONV, CONV_1X1, MATRIX, SAME, NameMap, Row, Transform, norm
from jaxgen.weights.options import options

CLASSES = ('AutoencoderKL',)

_DEFAULTS = {
    'block_out_channels': (64,),
    'layers_per_block': 1,
    'latent_channels': 4,
    'norm_num_groups': 32,
    'mid_block_add_attention': True,
    'use_quant_conv': True,
    'use_post_quant_conv': True,
    'scaling_factor': 0.18215,
    'shift_factor': None,
    'latents_mean': None,
    'latents_std': None,
    'sample_size': 32,
    'force_upcast': True,
    'down_block_types': ('DownEncoderBlock2D',),
    'up_block_types': ('UpDecoderBlock2D',),
}
_FIXED = {'in_channels': 3, 'out_channels': 3, 'act_fn': 'silu'}
_DOWN = ('DownEncoderBlock2D', 'AttnDownEncoderBlock2D')
_UP = ('UpDecoderBlock2D', 'AttnUpDecoderBlock2D')


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of tokenizers.kl_vae.build for a config.json of diffusers."""
    given = options(published, defaults=_DEFAULTS, fixed=_FIXED)
    size, widths = given['sample_size'], tuple(given['block_out_channels'])
    down = _attention(given['down_block_types'], _DOWN)
    up = _attention(tuple(reversed(given['up_block_types'])), _UP)
    if down != up or len(given['down_block_types']) != len(widths):
        raise ValueError(
            f'AutoencoderKL with down_block_types={given["down_block_types"]} and up_block_types='
            f'{given["up_block_types"]} at {len(widths)} levels is not implemented: each level is of one kind'
        )
    arguments = {
        'widths': widths,
        'blocks': given['layers_per_block'],
        'channels': given['latent_channels'],
        'groups': given['norm_num_groups'],
        'attention': down,
        'middle_attention': given['mid_block_add_attention'],
        'quant_conv': given['use_quant_conv'],
        'post_quant_conv': given['use_post_quant_conv'],
        'scale': given['scaling_factor'],
        'sample_size': size if isinstance(size, int) else size[0],
        'upcast': given['force_upcast'],
    }
    numbers = {'shift': given['shift_factor']}
    for ours, theirs in (('mean', 'latents_mean'), ('deviation', 'latents_std')):
        numbers[ours] = None if given[theirs] is None else tuple(given[theirs])
    return arguments | {name: number for name, number in numbers.items() if number is not None}


def to_config(network: AutoencoderKL) -> dict[str, Any]:
    """The config.json that diffusers builds the same network from."""
    levels = range(len(network.widths))
    return {
        '_class_name': CLASSES[0],
        'in_channels': 3,
        'out_channels': 3,
        'down_block_types': [_DOWN[level in network.attention] for level in levels],
        'up_block_types': [_UP[level in network.attention] for level in reversed(levels)],
        'block_out_channels': list(network.widths),
        'layers_per_block': network.blocks,
        'act_fn': 'silu',
        'latent_channels': network.channels,
        'norm_num_groups': network.groups,
        'sample_size': network.sample_size,
        'scaling_factor': network.scale,
        'shift_factor': network.shift,
        'latents_mean': None if network.mean is None else list(network.mean),
        'latents_std': None if network.deviation is None else list(network.deviation),
        'force_upcast': network.upcast,
        'use_quant_conv': network.quant_conv,
        'use_post_quant_conv': network.post_quant_conv,
        'mid_block_add_attention': network.middle_attention,
    }


def inputs(network: AutoencoderKL) -> tuple[np.ndarray, ...]:
    """The least that the network reads: the image of one latent."""
    return (np.zeros((1, network.factor, network.factor, 3), np.float32),)


def layouts(network: AutoencoderKL) -> dict[str, NameMap]:
    """diffusers' names, CompVis', and those in a whole Stable Diffusion checkpoint."""
    return {
        'diffusers': NameMap(network_rows(network, DIFFUSERS)),
        'compvis': NameMap(network_rows(network, COMPVIS), ('loss.*', 'model_ema.*')),
        'stable_diffusion': NameMap(network_rows(network, COMPVIS, 'first_stage_model.'), _OF_OTHERS),
    }


@dataclasses.dataclass(frozen=True)
class Names:
    """How a layout names the parts; `{}` is the number of a level or a block."""

    down: str
    up: str
    block: str
    attention: str
    downsample: str
    upsample: str
    middle_blocks: tuple[str, str]
    middle_attention: str
    shortcut: str
    norm_out: str
    attention_norm: str
    projections: tuple[dict[str, str], ...]  # alternatives, the first being the one that is written
    matrix: Transform
    up_from_finest: bool


DIFFUSERS = Names(
    down='down_blocks.{}',
    up='up_blocks.{}',
    block='resnets.{}',
    attention='attentions.{}',
    downsample='downsamplers.0.conv',
    upsample='upsamplers.0.conv',
    middle_blocks=('mid_block.resnets.0', 'mid_block.resnets.1'),
    middle_attention='mid_block.attentions.0',
    shortcut='conv_shortcut',
    norm_out='conv_norm_out',
    attention_norm='group_norm',
    projections=(
        {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'out': 'to_out.0'},
        {'query': 'query', 'key': 'key', 'value': 'value', 'out': 'proj_attn'},
    ),
    matrix=MATRIX,
    up_from_finest=False,
)
COMPVIS = Names(
    down='down.{}',
    up='up.{}',
    block='block.{}',
    attention='attn.{}',
    downsample='downsample.conv',
    upsample='upsample.conv',
    middle_blocks=('mid.block_1', 'mid.block_2'),
    middle_attention='mid.attn_1',
    shortcut='nin_shortcut',
    norm_out='norm_out',
    attention_norm='norm',
    projections=({'query': 'q', 'key': 'k', 'value': 'v', 'out': 'proj_out'},),
    matrix=CONV_1X1,
    up_from_finest=True,
)
# What else a Stable Diffusion checkpoint holds: the generator, the text encoders, the noise schedule.
_OF_OTHERS = (
    *('model.*', 'model_ema.*', 'cond_stage_model.*', 'conditioner.*', 'first_stage_model.loss.*'),
    *('betas', '*alphas_cumprod*', 'posterior_*', 'logvar', 'scale_factor', 'denoiser.*'),
)


def coder_rows(
    names: Names,
    widths: tuple[int, ...],
    blocks: int,
    attention: tuple[int, ...],
    middle_attention: bool,
    *,
    decoder: bool,
    prefix: str = '',
) -> tuple[Row, ...]:
    """Rows of one Encoder or Decoder of tokenizers/convolutional.py."""
    ours, last = 'decoder' if decoder else 'encoder', len(widths) - 1
    theirs, width = f'{prefix}{ours}', widths[last if decoder else 0]
    rows = [
        *_convolution(f'{theirs}.conv_in', f'{ours}/in'),
        *norm(f'{theirs}.{names.norm_out}', f'{ours}/norm'),
    ]
    rows += _convolution(f'{theirs}.conv_out', f'{ours}/out')
    for number, block in enumerate(names.middle_blocks):
        rows += _block(names, f'{theirs}.{block}', f'{ours}/middle/block_{number}', False)
    if middle_attention:
        rows += _attention_rows(names, f'{theirs}.{names.middle_attention}', f'{ours}/middle/attention')
    for level in reversed(range(last + 1)) if decoder else range(last + 1):
        number = level if names.up_from_finest or not decoder else last - level
        their_level = f'{theirs}.{(names.up if decoder else names.down).format(number)}'
        our_level = f'{ours}/{"up" if decoder else "down"}_{level}'
        for number in range(blocks + decoder):
            block, projected = names.block.format(number), widths[level] != width
            rows += _block(names, f'{their_level}.{block}', f'{our_level}/block_{number}', projected)
            if level in attention:
                attend = names.attention.format(number)
                rows += _attention_rows(names, f'{their_level}.{attend}', f'{our_level}/attention_{number}')
            width = widths[level]
        if level != (0 if decoder else last):
            resample = names.upsample if decoder else names.downsample
            rows += _convolution(f'{their_level}.{resample}', f'{our_level}/resample')
    return tuple(rows)


def network_rows(network: AutoencoderKL, names: Names, prefix: str = '') -> tuple[Row, ...]:
    """Rows of the whole autoencoder."""
    shared = network.widths, network.blocks, network.attention, network.middle_attention
    rows = [
        row for decoder in (False, True) for row in coder_rows(names, *shared, decoder=decoder, prefix=prefix)
    ]
    if network.quant_conv:
        rows += _linear(f'{prefix}quant_conv', 'to_moments', CONV_1X1)
    if network.post_quant_conv:
        rows += _linear(f'{prefix}post_quant_conv', 'from_latents', CONV_1X1)
    return tuple(rows)


def _block(names: Names, theirs: str, ours: str, projected: bool) -> list[Row]:
    rows = []
    for number in (1, 2):
        rows += norm(f'{theirs}.norm{number}', f'{ours}/norm{number}')
        rows += _convolution(f'{theirs}.conv{number}', f'{ours}/convolution{number}')
    return rows + (_linear(f'{theirs}.{names.shortcut}', f'{ours}/shortcut', CONV_1X1) if projected else [])


def _attention_rows(names: Names, theirs: str, ours: str) -> list[Row]:
    rows = [*norm(f'{theirs}.{names.attention_norm}', f'{ours}/norm')]
    for projections in names.projections:
        for our_name, their_name in projections.items():
            rows += _linear(f'{theirs}.{their_name}', f'{ours}/{our_name}', names.matrix)
    return rows


def _linear(theirs: str, ours: str, transform: Transform) -> list[Row]:
    return [
        Row(f'{theirs}.weight', (f'{ours}/kernel',), transform),
        Row(f'{theirs}.bias', (f'{ours}/bias',), SAME),
    ]


def _convolution(theirs: str, ours: str) -> list[Row]:
    return _linear(theirs, ours, CONV)


def _attention(kinds: tuple[str, ...], known: tuple[str, str]) -> tuple[int, ...]:
    """The levels of the second kind."""
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        raise ValueError(
            f'AutoencoderKL with a block of type {unknown[0]!r} is not implemented, only {known}'
        )
    return tuple(level for level, kind in enumerate(kinds) if kind == known[1])
