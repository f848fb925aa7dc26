"""VA-VAE's published names: those of its authors (hustvl/LightningDiT, 2501.01423).

The weights have CompVis' names. The statistics of the latents, 'mean' and 'std', are published as a file of
their own (latents_stats.pt), and both paths are given with a comma between. What the training kept besides
(losses, the foundation model, its projection) is left out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.tokenizers.va_vae import AlignedAutoencoder
from jaxgen.weights.kl_vae import COMPVIS, network_rows
from jaxgen.weights.names import NameMap, Row, Transform
from jaxgen.weights.options import options

CLASSES = ('AlignedAutoencoder',)

# What the authors' configs say of the network: their `ddconfig`, `embed_dim` and the multiplier.
_DEFAULTS = {
    'ch': 128,
    'ch_mult': (1, 1, 2, 2, 4),
    'num_res_blocks': 2,
    'attn_resolutions': (16,),
    'resolution': 256,
    'z_channels': 32,
    'embed_dim': 32,
    'latent_multiplier': 1.0,
}
_FIXED = {'double_z': True, 'in_channels': 3, 'out_ch': 3, 'dropout': 0.0, 'norm_num_groups': 32}
# [1, channels, 1, 1] <-> [channels]
_CHANNELS = Transform(lambda a: (a.reshape(-1),), lambda a: a[None, :, None, None])
_OF_TRAINING = ('loss.*', 'foundation_model.*', 'linear_proj.*', 'model_ema.*')


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of tokenizers.va_vae.build for the authors' settings."""
    given = options(published, defaults=_DEFAULTS, fixed=_FIXED)
    if given['embed_dim'] != given['z_channels']:
        raise ValueError(
            f'embed_dim={given["embed_dim"]} with z_channels={given["z_channels"]} is not implemented; they '
            'have to be equal'
        )
    sides = [given['resolution'] // 2**level for level in range(len(given['ch_mult']))]
    return {
        'widths': tuple(given['ch'] * factor for factor in given['ch_mult']),
        'blocks': given['num_res_blocks'],
        'channels': given['embed_dim'],
        'attention': tuple(level for level, side in enumerate(sides) if side in given['attn_resolutions']),
        'scale': given['latent_multiplier'],
    }


def to_config(network: AlignedAutoencoder) -> dict[str, Any]:
    """The authors' settings of a network."""
    base = int(np.gcd.reduce(network.widths))
    return {
        '_class_name': CLASSES[0],
        'ch': base,
        'ch_mult': [width // base for width in network.widths],
        'num_res_blocks': network.blocks,
        'attn_resolutions': [256 // 2**level for level in network.attention],
        'resolution': 256,
        'z_channels': network.channels,
        'embed_dim': network.channels,
        'latent_multiplier': network.scale,
        'norm_num_groups': network.groups,
        **{name: value for name, value in _FIXED.items() if name != 'norm_num_groups'},
    }


def inputs(network: AlignedAutoencoder) -> tuple[np.ndarray, ...]:
    """The least that the network reads: the image of one latent."""
    return (np.zeros((1, network.factor, network.factor, 3), np.float32),)


def layouts(network: AlignedAutoencoder) -> dict[str, NameMap]:
    """The authors' names."""
    statistics = (
        Row('mean', ('statistics/mean',), _CHANNELS),
        Row('std', ('statistics/deviation',), _CHANNELS),
    )
    return {'authors': NameMap((*network_rows(network, COMPVIS), *statistics), _OF_TRAINING)}
