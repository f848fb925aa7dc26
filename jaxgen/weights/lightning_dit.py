"""LightningDiT's published names, which are its authors' alone (hustvl/LightningDiT, 2501.01423).

Position and rotation tables are computed, never loaded.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.models.lightning_dit import LightningDiT
from jaxgen.weights.names import SAME, NameMap, Row, linear, patch_kernel

CLASSES: tuple[str, ...] = ()  # no library that writes a config.json carries it

_BLOCK = 'blocks/stack/{i}'


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """There is no published config.json: the network is that of a config of jaxgen."""
    raise ValueError('LightningDiT is published without a config.json; take configs/lightning_dit.py')


def to_config(network: LightningDiT) -> dict[str, Any]:
    """There is no format that others would read."""
    raise ValueError("no other library's folders hold a LightningDiT; only its authors' checkpoints do")


def inputs(network: LightningDiT) -> tuple[Any, ...]:
    """The least that the network reads: one patch."""
    x = np.zeros((1, network.patch, network.patch, network.channels), np.float32)
    return x, np.zeros(1, np.float32), {'label': np.zeros(1, np.int32), 'drop': np.zeros(1, bool)}


def layouts(network: LightningDiT) -> dict[str, NameMap]:
    """Every published layout of this network, by name."""
    return {'authors': authors(network.patch)}


def authors(patch: int) -> NameMap:
    """The authors' names for a network with patches of `patch`."""
    attention = f'{_BLOCK}/attention'
    rows = (
        Row('x_embedder.proj.weight', ('patch/projection/kernel',), patch_kernel(patch)),
        Row('x_embedder.proj.bias', ('patch/projection/bias',), SAME),
        *linear('t_embedder.mlp.0', 'time/up'),
        *linear('t_embedder.mlp.2', 'time/down'),
        Row('y_embedder.embedding_table.weight', ('label/table',), SAME),
        *linear('blocks.{i}.adaLN_modulation.1', f'{_BLOCK}/modulation'),
        Row('blocks.{i}.norm1.weight', (f'{_BLOCK}/attention_norm/scale',), SAME),
        *linear('blocks.{i}.attn.qkv', *(f'{attention}/{name}' for name in ('query', 'key', 'value'))),
        Row('blocks.{i}.attn.q_norm.weight', (f'{attention}/query_head_norm/scale',), SAME, optional=True),
        Row('blocks.{i}.attn.k_norm.weight', (f'{attention}/key_head_norm/scale',), SAME, optional=True),
        *linear('blocks.{i}.attn.proj', f'{attention}/out'),
        Row('blocks.{i}.norm2.weight', (f'{_BLOCK}/mlp_norm/scale',), SAME),
        *linear('blocks.{i}.mlp.w12', f'{_BLOCK}/mlp/gate', f'{_BLOCK}/mlp/up'),
        *linear('blocks.{i}.mlp.w3', f'{_BLOCK}/mlp/down'),
        *linear('final_layer.adaLN_modulation.1', 'final/modulation'),
        Row('final_layer.norm_final.weight', ('final/norm/scale',), SAME),
        *linear('final_layer.linear', 'final/out'),
    )
    return NameMap(rows, ignored=('pos_embed', 'feat_rope.freqs_cos', 'feat_rope.freqs_sin'))
