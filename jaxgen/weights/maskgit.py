"""MaskGIT's published names, those of valeoai/Halton-MaskGIT (2503.17076), as in ImageNet_384_large.pth.

Its table of tokens is also its head's matrix, and stored twice.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxgen.models.maskgit import MaskGIT
from jaxgen.weights.names import MATRIX, SAME, NameMap, Row, linear

CLASSES: tuple[str, ...] = ()  # no library that writes a config.json carries it

_BLOCK = 'blocks/stack/{i}'


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """There is no published config.json: the network is that of a config of jaxgen."""
    raise ValueError('MaskGIT is published without a config.json; take configs/maskgit_imagenet.py')


def to_config(network: MaskGIT) -> dict[str, Any]:
    """There is no format that others would read."""
    raise ValueError("no other library's folders hold a MaskGIT; only its authors' checkpoints do")


def inputs(network: Any) -> tuple[Any, ...]:
    """What the network is initialised with."""
    cond = {'label': np.zeros(1, np.int32), 'drop': np.zeros(1, bool)}
    return jax.tree.map(np.asarray, network.blank(None, None, cond))


def layouts(network: MaskGIT) -> dict[str, NameMap]:
    """Every published layout of this network, by name."""
    return {'authors': authors()}


def authors() -> NameMap:
    """The authors' names."""
    theirs = 'transformer.layers.{i}'
    matrices = {
        'attn.wq': 'attention/query',
        'attn.wk': 'attention/key',
        'attn.wv': 'attention/value',
        'attn.wo': 'attention/out',
        'ff.w1': 'mlp/gate',
        'ff.w2': 'mlp/down',
        'ff.w3': 'mlp/up',
    }
    rows = (
        Row('cls_emb.weight', ('label/table',), SAME),
        Row('tok_emb.weight', ('table',), SAME),
        Row('head.weight', ('table',), SAME),
        Row('pos_emb.weight', ('position',), SAME),
        Row('reg_tokens.weight', ('registers',), SAME, optional=True),
        *linear(f'{theirs}.mlp.1', f'{_BLOCK}/modulation'),
        Row(f'{theirs}.ln1.weight', (f'{_BLOCK}/attention_norm/scale',), SAME),
        Row(f'{theirs}.ln2.weight', (f'{_BLOCK}/mlp_norm/scale',), SAME),
        *(
            Row(f'{theirs}.{name}.weight', (f'{_BLOCK}/{ours}/kernel',), MATRIX)
            for name, ours in matrices.items()
        ),
        Row('last_norm.norm_final.weight', ('final_norm/scale',), SAME),
        Row('last_norm.norm_final.bias', ('final_offset',), SAME),
        *linear('last_norm.mlp.1', 'final'),
        Row('head.bias', ('bias',), SAME),
    )
    return NameMap(rows)
