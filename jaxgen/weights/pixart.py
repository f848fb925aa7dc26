"""PixArt's published names: the authors' checkpoints (alpha, Sigma: 2310.00426, 2403.04692) and diffusers'.

diffusers keeps no null caption embedding: its pipelines encode the empty caption instead, so `null_text`
has to be given when such weights are loaded. It has no compressed keys and values and no normalised queries
either; the length of captions is its pipeline's.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.models.pixart import PixArt
from jaxgen.weights.names import DEPTHWISE, SAME, NameMap, Row, linear, norm, patch_kernel
from jaxgen.weights.options import learned_variance, options

# The second is what folders of 2023 say, DiT's too: `norm_type` tells which it is.
CLASSES = ('PixArtTransformer2DModel', 'Transformer2DModel')

_BLOCK = 'blocks/stack/{i}'
_DEFAULTS = {
    'num_attention_heads': 16,
    'attention_head_dim': 72,
    'in_channels': 4,
    'out_channels': 8,
    'num_layers': 28,
    'cross_attention_dim': 1152,
    'sample_size': 128,
    'patch_size': 2,
    'interpolation_scale': None,
    'use_additional_conditions': None,
    'caption_channels': None,
}
_FIXED = {
    'norm_type': 'ada_norm_single',
    'activation_fn': 'gelu-approximate',
    'attention_bias': True,
    'norm_elementwise_affine': False,
    'norm_eps': 1e-6,
    'dropout': 0.0,
    'upcast_attention': False,
    'only_cross_attention': False,
    'double_self_attention': False,
    'num_vector_embeds': None,
    'attention_type': 'default',
}
_UNUSED = ('norm_num_groups', 'use_linear_projection', 'num_embeds_ada_norm')


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of models.pixart.build for a config.json of diffusers, but for the length of captions."""
    if published.get('_class_name') == CLASSES[1]:
        published = {'norm_type': 'layer_norm', **published}  # its default
    given = options(published, defaults=_DEFAULTS, fixed=_FIXED, unused=_UNUSED)
    channels, patch, side = given['in_channels'], given['patch_size'], given['sample_size']
    hidden = given['num_attention_heads'] * given['attention_head_dim']
    if given['cross_attention_dim'] != hidden or given['caption_channels'] is None:
        raise ValueError(
            f'cross_attention_dim is {given["cross_attention_dim"]} and caption_channels '
            f"{given['caption_channels']}: captions have to be projected to the network's width of {hidden}"
        )
    # What a folder leaves open follows from its size: only the 1024 of alpha came before the options did.
    micro, scale = given['use_additional_conditions'], given['interpolation_scale']
    return {
        'hidden': hidden,
        'depth': given['num_layers'],
        'heads': given['num_attention_heads'],
        'patch': patch,
        'channels': channels,
        'caption_width': given['caption_channels'],
        'learned_variance': learned_variance(channels, given['out_channels']),
        'micro_conditioning': side == 128 if micro is None else micro,
        'base_size': side // patch,
        'interpolation': float(max(side // 64, 1) if scale is None else scale),
    }


def to_config(network: PixArt) -> dict[str, Any]:
    """The config.json that diffusers builds the same network from."""
    if network.compress_layers or network.qk_norm:
        raise ValueError(
            'diffusers has no PixArt with compressed keys and values or normalised queries; '
            "only the authors' layout holds this network"
        )
    if network.base_size is None:
        raise ValueError('diffusers asks for the size of the latents: set base_size to their side / patch')
    return {
        '_class_name': CLASSES[0],
        'num_attention_heads': network.heads,
        'attention_head_dim': network.width // network.heads,
        'in_channels': network.channels,
        'out_channels': network.channels * (2 if network.learned_variance else 1),
        'num_layers': network.depth,
        'cross_attention_dim': network.width,
        'sample_size': network.base_size * network.patch,
        'patch_size': network.patch,
        'interpolation_scale': network.interpolation,
        'use_additional_conditions': network.micro_conditioning,
        'caption_channels': network.caption_width,
        'norm_type': 'ada_norm_single',
        'activation_fn': 'gelu-approximate',
        'attention_bias': True,
        'norm_elementwise_affine': False,
        'norm_eps': 1e-6,
    }


def inputs(network: PixArt) -> tuple[Any, ...]:
    """The least that the network reads: one patch that keys and values can be compressed in, one word."""
    side = network.patch * network.compress_ratio
    cond = {
        'text': np.zeros((1, 1, network.caption_width), np.float32),
        'text_mask': np.ones((1, 1), bool),
        'drop': np.zeros(1, bool),
        'size': np.zeros((1, 2), np.float32),
        'aspect': np.zeros((1, 1), np.float32),
    }
    return np.zeros((1, side, side, network.channels), np.float32), np.zeros(1, np.float32), cond


def layouts(network: PixArt) -> dict[str, NameMap]:
    """Every published layout that can hold this network, by name."""
    if network.compress_layers or network.qk_norm:
        return {'authors': authors(network.patch)}
    return {'diffusers': diffusers(network.patch), 'authors': authors(network.patch)}


def authors(patch: int) -> NameMap:
    """The authors' names for a network with patches of `patch`."""
    attention, cross = f'{_BLOCK}/attention', f'{_BLOCK}/cross_attention'
    rows = (
        Row('x_embedder.proj.weight', ('patch/projection/kernel',), patch_kernel(patch)),
        Row('x_embedder.proj.bias', ('patch/projection/bias',), SAME),
        *linear('t_embedder.mlp.0', 'time/up'),
        *linear('t_embedder.mlp.2', 'time/down'),
        *linear('csize_embedder.mlp.0', 'size/mlp/up', optional=True),
        *linear('csize_embedder.mlp.2', 'size/mlp/down', optional=True),
        *linear('ar_embedder.mlp.0', 'aspect/mlp/up', optional=True),
        *linear('ar_embedder.mlp.2', 'aspect/mlp/down', optional=True),
        *linear('t_block.1', 'modulation'),
        *linear('y_embedder.y_proj.fc1', 'caption/up'),
        *linear('y_embedder.y_proj.fc2', 'caption/down'),
        Row('y_embedder.y_embedding', ('null_text',), SAME),
        Row('blocks.{i}.scale_shift_table', (f'{_BLOCK}/table',), SAME),
        *linear('blocks.{i}.attn.qkv', *(f'{attention}/{name}' for name in ('query', 'key', 'value'))),
        *linear('blocks.{i}.attn.proj', f'{attention}/out'),
        *norm('blocks.{i}.attn.q_norm', f'{attention}/query_norm', optional=True),
        *norm('blocks.{i}.attn.k_norm', f'{attention}/key_norm', optional=True),
        Row('blocks.{i}.attn.sr.weight', (f'{attention}/compress/kernel',), DEPTHWISE, optional=True),
        Row('blocks.{i}.attn.sr.bias', (f'{attention}/compress/bias',), SAME, optional=True),
        *norm('blocks.{i}.attn.norm', f'{attention}/compress/norm', optional=True),
        *linear('blocks.{i}.cross_attn.q_linear', f'{cross}/query'),
        *linear('blocks.{i}.cross_attn.kv_linear', f'{cross}/key', f'{cross}/value'),
        *linear('blocks.{i}.cross_attn.proj', f'{cross}/out'),
        *linear('blocks.{i}.mlp.fc1', f'{_BLOCK}/mlp/up'),
        *linear('blocks.{i}.mlp.fc2', f'{_BLOCK}/mlp/down'),
        Row('final_layer.scale_shift_table', ('final/table',), SAME),
        *linear('final_layer.linear', 'final/out'),
    )
    return NameMap(rows, ignored=('pos_embed',))


def diffusers(patch: int) -> NameMap:
    """Names of diffusers' PixArtTransformer2DModel."""
    block, attention, cross = 'transformer_blocks.{i}', f'{_BLOCK}/attention', f'{_BLOCK}/cross_attention'
    projections = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'out'}
    embed = 'adaln_single.emb'
    rows = (
        Row('pos_embed.proj.weight', ('patch/projection/kernel',), patch_kernel(patch)),
        Row('pos_embed.proj.bias', ('patch/projection/bias',), SAME),
        *linear(f'{embed}.timestep_embedder.linear_1', 'time/up'),
        *linear(f'{embed}.timestep_embedder.linear_2', 'time/down'),
        *linear(f'{embed}.resolution_embedder.linear_1', 'size/mlp/up', optional=True),
        *linear(f'{embed}.resolution_embedder.linear_2', 'size/mlp/down', optional=True),
        *linear(f'{embed}.aspect_ratio_embedder.linear_1', 'aspect/mlp/up', optional=True),
        *linear(f'{embed}.aspect_ratio_embedder.linear_2', 'aspect/mlp/down', optional=True),
        *linear('adaln_single.linear', 'modulation'),
        *linear('caption_projection.linear_1', 'caption/up'),
        *linear('caption_projection.linear_2', 'caption/down'),
        Row(f'{block}.scale_shift_table', (f'{_BLOCK}/table',), SAME),
        *(
            row
            for name, ours in projections.items()
            for row in linear(f'{block}.attn1.{name}', f'{attention}/{ours}')
        ),
        *(
            row
            for name, ours in projections.items()
            for row in linear(f'{block}.attn2.{name}', f'{cross}/{ours}')
        ),
        *linear(f'{block}.ff.net.0.proj', f'{_BLOCK}/mlp/up'),
        *linear(f'{block}.ff.net.2', f'{_BLOCK}/mlp/down'),
        Row('scale_shift_table', ('final/table',), SAME),
        *linear('proj_out', 'final/out'),
    )
    return NameMap(rows, ignored=('pos_embed.pos_embed',), ours_only=('null_text',))
