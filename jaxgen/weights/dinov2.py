"""DINOv2's published names (2304.07193, 2309.16588): transformers' folders and the authors' .pth.

The authors' code resizes positions for other pictures in its own way: `offset` of the network says which.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.encoders.dinov2 import Dinov2, mlp_width
from jaxgen.weights.names import SAME, NameMap, Row, Transform, linear, norm, patch_kernel
from jaxgen.weights.options import options

PLAIN, WITH_REGISTERS = 'Dinov2Model', 'Dinov2WithRegistersModel'
CLASSES = (PLAIN, WITH_REGISTERS, 'dinov2', 'dinov2_with_registers')

_DEFAULTS = {
    'hidden_size': 768,
    'num_hidden_layers': 12,
    'num_attention_heads': 12,
    'mlp_ratio': 4,
    'layer_norm_eps': 1e-6,
    'image_size': 224,
    'layerscale_value': 1.0,
    'use_swiglu_ffn': False,
    'use_mask_token': True,
    'num_register_tokens': 4,
    'patch_size': None,
    'model_type': 'dinov2',
}
_FIXED = {'hidden_act': 'gelu', 'num_channels': 3, 'qkv_bias': True}
_PATCHES = {'dinov2': 14, 'dinov2_with_registers': 16}  # where a config does not say it
_ROW = Transform(lambda a: (a[0],), lambda a: a[None])
_CELL = Transform(lambda a: (a[0, 0],), lambda a: a[None, None])


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of encoders.dinov2.build for a config.json of transformers."""
    # Other options are of training, or those that transformers notes of every model.
    known = {option: value for option, value in published.items() if option in _DEFAULTS or option in _FIXED}
    given = options(known, defaults=_DEFAULTS, fixed=_FIXED)
    if given['model_type'] not in _PATCHES:
        raise ValueError(f'model_type is {given["model_type"]!r}; DINOv2 is one of {", ".join(_PATCHES)}.')
    registers = given['model_type'] == 'dinov2_with_registers'
    width, swiglu = given['hidden_size'], given['use_swiglu_ffn']
    return {
        'patch': given['patch_size'] or _PATCHES[given['model_type']],
        'image': given['image_size'],
        'registers': given['num_register_tokens'] if registers else 0,
        'antialias': registers,
        'mask_token': given['use_mask_token'],
        'swiglu': swiglu,
        'scale': given['layerscale_value'],
        'epsilon': given['layer_norm_eps'],
        'width': width,
        'depth': given['num_hidden_layers'],
        'heads': given['num_attention_heads'],
        'hidden': mlp_width(width, given['mlp_ratio'], swiglu),
    }


def to_config(network: Dinov2) -> dict[str, Any]:
    """The config.json that transformers builds the same network from."""
    ratio = next(
        (n for n in range(1, 65) if mlp_width(network.width, n, network.swiglu) == network.hidden), None
    )
    if ratio is None:
        raise ValueError(
            f'hidden is {network.hidden} and width {network.width}; transformers has whole multiples only.'
        )
    if network.antialias != bool(network.registers) or network.offset:
        raise ValueError(
            f'antialias is {network.antialias}, offset {network.offset}, registers {network.registers}; '
            'transformers resizes positions with antialias where there are registers, and has no offset.'
        )
    config = {
        'architectures': [WITH_REGISTERS if network.registers else PLAIN],
        'model_type': 'dinov2_with_registers' if network.registers else 'dinov2',
        'hidden_size': network.width,
        'num_hidden_layers': network.depth,
        'num_attention_heads': network.heads,
        'mlp_ratio': ratio,
        'layer_norm_eps': network.epsilon,
        'image_size': network.image,
        'patch_size': network.patch,
        'layerscale_value': network.scale,
        'use_swiglu_ffn': network.swiglu,
        **_FIXED,
    }
    if network.registers:
        return config | {'num_register_tokens': network.registers}
    return config | {'use_mask_token': network.mask_token}


def inputs(network: Dinov2) -> tuple[np.ndarray]:
    """The least that the network's init takes: one picture of one patch."""
    return (np.zeros((1, network.patch, network.patch, 3), np.float32),)


def layouts(network: Dinov2) -> dict[str, NameMap]:
    """transformers' names and the authors'."""
    return {'transformers': NameMap(_transformers(network)), 'authors': NameMap(_authors(network))}


def _transformers(network: Dinov2) -> tuple[Row, ...]:
    theirs, ours = 'encoder.layer.{i}', 'blocks/stack/{i}'
    attention = {f'attention.attention.{name}': name for name in ('query', 'key', 'value')}
    attention['attention.output.dense'] = 'out'
    mlp = _mlp(network, f'{theirs}.mlp', ('weights_in', 'weights_out'))
    return (
        *_tokens(network, 'embeddings.{}', ('cls_token', 'position_embeddings')),
        *_patch(network, 'embeddings.patch_embeddings.projection'),
        *(
            row
            for name, own in attention.items()
            for row in linear(f'{theirs}.{name}', f'{ours}/attention/{own}')
        ),
        *(Row(f'{theirs}.layer_scale{n}.lambda1', (f'{ours}/scale{n}',), SAME) for n in (1, 2)),
        *(row for n in (1, 2) for row in norm(f'{theirs}.norm{n}', f'{ours}/norm{n}')),
        *mlp,
        *norm('layernorm', 'norm'),
    )


def _authors(network: Dinov2) -> tuple[Row, ...]:
    theirs, ours = 'blocks.{i}', 'blocks/stack/{i}'
    return (
        *_tokens(network, '{}', ('cls_token', 'pos_embed')),
        *_patch(network, 'patch_embed.proj'),
        *linear(f'{theirs}.attn.qkv', *(f'{ours}/attention/{name}' for name in ('query', 'key', 'value'))),
        *linear(f'{theirs}.attn.proj', f'{ours}/attention/out'),
        *(Row(f'{theirs}.ls{n}.gamma', (f'{ours}/scale{n}',), SAME) for n in (1, 2)),
        *(row for n in (1, 2) for row in norm(f'{theirs}.norm{n}', f'{ours}/norm{n}')),
        *_mlp(network, f'{theirs}.mlp', ('w12', 'w3')),
        *norm('norm', 'norm'),
    )


def _tokens(network: Dinov2, pattern: str, names: tuple[str, str]) -> list[Row]:
    class_token, position = names
    rows = [
        Row(pattern.format(class_token), ('class_token',), _CELL),
        Row(pattern.format(position), ('position',), _ROW),
    ]
    if network.mask_token:
        rows.append(Row(pattern.format('mask_token'), ('mask_token',), _ROW))
    if network.registers:
        rows.append(Row(pattern.format('register_tokens'), ('registers',), _ROW))
    return rows


def _patch(network: Dinov2, theirs: str) -> tuple[Row, Row]:
    kernel, bias = 'patch/projection/kernel', 'patch/projection/bias'
    return Row(f'{theirs}.weight', (kernel,), patch_kernel(network.patch)), Row(
        f'{theirs}.bias', (bias,), SAME
    )


def _mlp(network: Dinov2, theirs: str, swiglu: tuple[str, str]) -> tuple[Row, ...]:
    ours = 'blocks/stack/{i}/mlp'
    if not network.swiglu:
        return (*linear(f'{theirs}.fc1', f'{ours}/up'), *linear(f'{theirs}.fc2', f'{ours}/down'))
    fused, down = swiglu
    return (
        *linear(f'{theirs}.{fused}', f'{ours}/gate', f'{ours}/up'),
        *linear(f'{theirs}.{down}', f'{ours}/down'),
    )
