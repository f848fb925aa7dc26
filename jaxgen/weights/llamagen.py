"""LlamaGen's published names, which are its authors' alone (FoundationVision/LlamaGen, 2406.06525).

As in c2i_B_256.pt and t2i_XL_stage1_256.pt. Query, key and value are one matrix there; the table of rotations
is computed, never loaded.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxgen.models.llamagen import LlamaGen
from jaxgen.weights.names import MATRIX, SAME, NameMap, Row, fused

CLASSES: tuple[str, ...] = ()  # no library that writes a config.json carries it

_BLOCK = 'blocks/stack/{i}'


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """There is no published config.json: the network is that of a config of jaxgen."""
    raise ValueError(
        'LlamaGen is published without a config.json; take configs/ar_imagenet.py or configs/ar_captions.py'
    )


def to_config(network: LlamaGen) -> dict[str, Any]:
    """There is no format that others would read."""
    raise ValueError("no other library's folders hold a LlamaGen; only its authors' checkpoints do")


def inputs(network: LlamaGen) -> tuple[Any, ...]:
    """What the network is initialised with."""
    cond: dict[str, Any] = {'drop': np.zeros(1, bool)}
    if network.caption_width:
        cond['text'] = np.zeros((1, network.caption_length, network.caption_width), np.float32)
        cond['text_mask'] = np.ones((1, network.caption_length), bool)
    else:
        cond['label'] = np.zeros(1, np.int32)
    return jax.tree.map(np.asarray, network.blank(None, None, cond))


def layouts(network: LlamaGen) -> dict[str, NameMap]:
    """Every published layout of this network, by name."""
    return {'authors': authors(network.caption_width is not None, len(network.scales))}


def authors(captions: bool, scales: int = 1) -> NameMap:
    """The authors' names of a network of captions or of classes; what several scales need they lack."""
    if captions:
        prefix = (
            Row('cls_embedding.cap_proj.fc1.weight', ('caption/up/kernel',), MATRIX),
            Row('cls_embedding.cap_proj.fc2.weight', ('caption/down/kernel',), MATRIX),
            Row('cls_embedding.uncond_embedding', ('null_text',), SAME),
        )
    else:
        prefix = (Row('cls_embedding.embedding_table.weight', ('label/table',), SAME),)
    kernels = tuple(f'{_BLOCK}/attention/{name}/kernel' for name in ('query', 'key', 'value'))
    rows = (
        *prefix,
        Row('tok_embeddings.weight', ('token',), SAME),
        Row('layers.{i}.attention.wqkv.weight', kernels, fused(3, True)),
        Row('layers.{i}.attention.wo.weight', (f'{_BLOCK}/attention/out/kernel',), MATRIX),
        Row('layers.{i}.feed_forward.w1.weight', (f'{_BLOCK}/mlp/gate/kernel',), MATRIX),
        Row('layers.{i}.feed_forward.w3.weight', (f'{_BLOCK}/mlp/up/kernel',), MATRIX),
        Row('layers.{i}.feed_forward.w2.weight', (f'{_BLOCK}/mlp/down/kernel',), MATRIX),
        Row('layers.{i}.attention_norm.weight', (f'{_BLOCK}/attention_norm/scale',), SAME),
        Row('layers.{i}.ffn_norm.weight', (f'{_BLOCK}/mlp_norm/scale',), SAME),
        Row('norm.weight', ('norm/scale',), SAME),
        Row('output.weight', ('head/kernel',), MATRIX),
    )
    return NameMap(rows, ignored=('freqs_cis',), ours_only=('level',) if scales > 1 else ())
