"""VAR's published names, which are its authors' alone (FoundationVision/VAR, 2404.02905), as in var_d16.pth.

Query, key and value are one matrix there, with a bias for query and value alone; masks and levels are
computed, never loaded.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxgen.models.var import VAR
from jaxgen.weights.names import SAME, NameMap, Row, Transform, fused, linear

CLASSES: tuple[str, ...] = ()  # no library that writes a config.json carries it

_BLOCK = 'blocks/stack/{i}'
# A table or a vector that is published with axes of one before it, or around it.
_BATCHED = Transform(lambda a: (a[0],), lambda a: a[None])
_HEADS = Transform(lambda a: (a[0, :, 0, 0],), lambda a: a[None, :, None, None])


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """There is no published config.json: the network is that of a config of jaxgen."""
    raise ValueError('VAR is published without a config.json; take configs/var_imagenet.py')


def to_config(network: VAR) -> dict[str, Any]:
    """There is no format that others would read."""
    raise ValueError("no other library's folders hold a VAR; only its authors' checkpoints do")


def inputs(network: VAR) -> tuple[Any, ...]:
    """What the network is initialised with."""
    cond = {'label': np.zeros(1, np.int32), 'drop': np.zeros(1, bool)}
    return jax.tree.map(np.asarray, network.blank(None, None, cond))


def layouts(network: VAR) -> dict[str, NameMap]:
    """Every published layout of this network, by name."""
    return {'authors': authors(network.shared)}


def authors(shared: bool) -> NameMap:
    """The authors' names; networks differ in whether modulations are made for all layers."""
    places = (
        Row('pos_1LC', ('position',), _BATCHED),
        Row('lvl_embed.weight', ('level',), SAME),
    )
    return table(shared, places)


def table(shared: bool, places: tuple[Row, ...]) -> NameMap:
    """The names of such a network that says by `places` where a token is."""
    attention = f'{_BLOCK}/attention'
    if shared:
        own = Transform(lambda a: (a.reshape(-1),), lambda a: a.reshape(1, 1, 6, -1))
        modulation = (
            *linear('shared_ada_lin.1', 'modulation'),
            Row('blocks.{i}.ada_gss', (f'{_BLOCK}/modulation',), own),
        )
    else:
        modulation = linear('blocks.{i}.ada_lin.1', f'{_BLOCK}/modulation')
    kernels = tuple(f'{attention}/{name}/kernel' for name in ('query', 'key', 'value'))
    rows = (
        *linear('word_embed', 'told'),
        Row('class_emb.weight', ('label/table',), SAME),
        Row('pos_start', ('start',), _BATCHED),
        *places,
        *modulation,
        Row('blocks.{i}.attn.mat_qkv.weight', kernels, fused(3, True)),
        Row('blocks.{i}.attn.q_bias', (f'{attention}/query/bias',), SAME),
        Row('blocks.{i}.attn.v_bias', (f'{attention}/value/bias',), SAME),
        Row('blocks.{i}.attn.scale_mul_1H11', (f'{attention}/warmth',), _HEADS, optional=True),
        *linear('blocks.{i}.attn.proj', f'{attention}/out'),
        *linear('blocks.{i}.ffn.fc1', f'{_BLOCK}/mlp/up'),
        *linear('blocks.{i}.ffn.fc2', f'{_BLOCK}/mlp/down'),
        *linear('head_nm.ada_lin.1', 'final'),
        *linear('head', 'head'),
    )
    return NameMap(rows, ignored=('lvl_1L', 'attn_bias_for_masking', 'blocks.{i}.attn.zero_k_bias'))
