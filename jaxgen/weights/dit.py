"""DiT's published names: the authors' checkpoints (facebookresearch/DiT, 2212.09748) and diffusers' layout.

The fixed position table is computed, never loaded. diffusers keeps a copy of the time and label embedders in
every block, spaces the frequencies of time differently (`frequency_shift`) and has another epsilon before the
MLP; its folders get both from `from_config`. SiT's checkpoints have DiT's names.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.models.dit import DiT
from jaxgen.weights.names import SAME, NameMap, Row, linear, patch_kernel
from jaxgen.weights.options import learned_variance, options

# The second is what folders of 2023 say, PixArt's too: `norm_type` tells which it is.
CLASSES = ('DiTTransformer2DModel', 'Transformer2DModel')

_BLOCK = 'blocks/stack/{i}'
_DEFAULTS = {
    'num_attention_heads': 16,
    'attention_head_dim': 72,
    'in_channels': 4,
    'out_channels': None,
    'num_layers': 28,
    'sample_size': 32,
    'patch_size': 2,
    'num_embeds_ada_norm': 1000,
    'norm_eps': 1e-5,
}
_FIXED = {
    'norm_type': 'ada_norm_zero',
    'activation_fn': 'gelu-approximate',
    'attention_bias': True,
    'norm_elementwise_affine': False,
    'dropout': 0.0,
    'upcast_attention': False,
    'cross_attention_dim': None,
    'only_cross_attention': False,
    'double_self_attention': False,
    'num_vector_embeds': None,
    'attention_type': 'default',
    'caption_channels': None,
    'interpolation_scale': None,
    'use_additional_conditions': None,
}
_UNUSED = ('norm_num_groups', 'use_linear_projection')


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of models.dit.build for a config.json of diffusers."""
    if published.get('_class_name') == CLASSES[1]:
        published = {'norm_type': 'layer_norm', **published}  # its default
    given = options(published, defaults=_DEFAULTS, fixed=_FIXED, unused=_UNUSED)
    channels, patch = given['in_channels'], given['patch_size']
    return {
        'hidden': given['num_attention_heads'] * given['attention_head_dim'],
        'depth': given['num_layers'],
        'heads': given['num_attention_heads'],
        'patch': patch,
        'channels': channels,
        'classes': given['num_embeds_ada_norm'],
        'learned_variance': learned_variance(channels, given['out_channels']),
        'base_size': given['sample_size'] // patch,
        'frequency_shift': 1,
        'norm_epsilon': given['norm_eps'],
    }


def to_config(network: DiT) -> dict[str, Any]:
    """The config.json that diffusers builds the same network from."""
    if network.discard_variance:
        raise ValueError(f'{CLASSES[0]} of diffusers has no outputs that it throws away; this is a SiT')
    if network.base_size is None:
        raise ValueError('diffusers asks for the size of the latents: set base_size to their side / patch')
    if network.frequency_shift != 1:
        raise ValueError(
            f'diffusers computes time with frequency_shift=1, not {network.frequency_shift}, and would draw '
            'other pictures; to export all the same, as the published folders do, build it with 1'
        )
    return {
        '_class_name': CLASSES[0],
        'num_attention_heads': network.heads,
        'attention_head_dim': network.width // network.heads,
        'in_channels': network.channels,
        'out_channels': network.channels * (2 if network.learned_variance else 1),
        'num_layers': network.depth,
        'sample_size': network.base_size * network.patch,
        'patch_size': network.patch,
        'num_embeds_ada_norm': network.classes,
        'norm_eps': network.norm_epsilon,
        'norm_type': 'ada_norm_zero',
        'activation_fn': 'gelu-approximate',
        'attention_bias': True,
        'norm_elementwise_affine': False,
    }


def inputs(network: DiT) -> tuple[Any, ...]:
    """The least that the network reads: one patch."""
    x = np.zeros((1, network.patch, network.patch, network.channels), np.float32)
    return x, np.zeros(1, np.float32), {'label': np.zeros(1, np.int32), 'drop': np.zeros(1, bool)}


def layouts(network: DiT) -> dict[str, NameMap]:
    """Every published layout of this network, by name."""
    return {'diffusers': diffusers(network.patch), 'authors': authors(network.patch)}


def authors(patch: int) -> NameMap:
    """The authors' names for a network with patches of `patch`."""
    rows = (
        Row('x_embedder.proj.weight', ('patch/projection/kernel',), patch_kernel(patch)),
        Row('x_embedder.proj.bias', ('patch/projection/bias',), SAME),
        *linear('t_embedder.mlp.0', 'time/up'),
        *linear('t_embedder.mlp.2', 'time/down'),
        Row('y_embedder.embedding_table.weight', ('label/table',), SAME),
        *linear('blocks.{i}.adaLN_modulation.1', f'{_BLOCK}/modulation'),
        *linear('blocks.{i}.attn.qkv', *(f'{_BLOCK}/attention/{name}' for name in ('query', 'key', 'value'))),
        *linear('blocks.{i}.attn.proj', f'{_BLOCK}/attention/out'),
        *linear('blocks.{i}.mlp.fc1', f'{_BLOCK}/mlp/up'),
        *linear('blocks.{i}.mlp.fc2', f'{_BLOCK}/mlp/down'),
        *linear('final_layer.adaLN_modulation.1', 'final/modulation'),
        *linear('final_layer.linear', 'final/out'),
    )
    return NameMap(rows, ignored=('pos_embed',))


def diffusers(patch: int) -> NameMap:
    """Names of diffusers' DiTTransformer2DModel."""
    block = 'transformer_blocks.{i}'
    rows = (
        Row('pos_embed.proj.weight', ('patch/projection/kernel',), patch_kernel(patch)),
        Row('pos_embed.proj.bias', ('patch/projection/bias',), SAME),
        *linear(f'{block}.norm1.emb.timestep_embedder.linear_1', 'time/up'),
        *linear(f'{block}.norm1.emb.timestep_embedder.linear_2', 'time/down'),
        Row(f'{block}.norm1.emb.class_embedder.embedding_table.weight', ('label/table',), SAME),
        *linear(f'{block}.norm1.linear', f'{_BLOCK}/modulation'),
        *linear(f'{block}.attn1.to_q', f'{_BLOCK}/attention/query'),
        *linear(f'{block}.attn1.to_k', f'{_BLOCK}/attention/key'),
        *linear(f'{block}.attn1.to_v', f'{_BLOCK}/attention/value'),
        *linear(f'{block}.attn1.to_out.0', f'{_BLOCK}/attention/out'),
        *linear(f'{block}.ff.net.0.proj', f'{_BLOCK}/mlp/up'),
        *linear(f'{block}.ff.net.2', f'{_BLOCK}/mlp/down'),
        *linear('proj_out_1', 'final/modulation'),
        *linear('proj_out_2', 'final/out'),
    )
    return NameMap(rows, ignored=('pos_embed.pos_embed',))
