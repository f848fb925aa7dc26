"""GIVT's published names: the flax tree of google-research/big_vision (2312.02116), with '/' between.

There all layers are one array, which has them as its second axis. Vectors that say of a place what it is are
rows of the classes' table there, before that of no class.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxgen.models.givt import GIVT
from jaxgen.weights.names import SAME, NameMap, Row, Transform

CLASSES: tuple[str, ...] = ()  # no library that writes a config.json carries it

_BATCHED = Transform(lambda a: (a[0],), lambda a: a[None])


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """There is no published config.json: the network is that of a config of jaxgen."""
    raise ValueError('GIVT is published without a config.json; take configs/givt_imagenet.py')


def to_config(network: GIVT) -> dict[str, Any]:
    """There is no format that others would read."""
    raise ValueError("no other library's folders hold a GIVT; only its authors' checkpoints do")


def inputs(network: GIVT) -> tuple[Any, ...]:
    """What the network is initialised with."""
    cond = {'label': np.zeros(1, np.int32), 'drop': np.zeros(1, bool)}
    return jax.tree.map(np.asarray, network.blank(None, None, cond))


def layouts(network: GIVT) -> dict[str, NameMap]:
    """Every published layout of this network, by name."""
    return {'authors': authors(network)}


def authors(network: GIVT) -> NameMap:
    """The authors' names, of as many layers as the network has."""
    block, heads = 'decoder/EncDecBlock', (network.heads, network.width // network.heads)
    inner = {'query': ('query', True), 'key': ('key', True), 'value': ('value', True), 'out': ('out', False)}
    attention = [
        _layers(network, f'{block}/SelfAttn/{theirs}/kernel', f'attention/{ours}/kernel', heads, split)
        for ours, (theirs, split) in inner.items()
    ]
    table = Transform(
        lambda a: (np.concatenate([a[: network.classes], a[-1:]]), a[network.classes : -1]),
        lambda label, special: np.concatenate([label[:-1], special, label[-1:]]),
    )
    label = (
        Row('EmbedLabels/embedding', ('label/table',), SAME)
        if network.causal
        else Row('EmbedLabels/embedding', ('label/table', 'special'), table)
    )
    rows = (
        label,
        *_affine('EmbedTargets', 'token', 'kernel'),
        Row('decoder/pos_emb', ('position',), _BATCHED),
        _layers(network, f'{block}/LayerNorm1/scale', 'attention_norm/scale'),
        *attention,
        _layers(network, f'{block}/LayerNorm3/scale', 'mlp_norm/scale'),
        *(
            _layers(network, f'{block}/MLP/{theirs}/{leaf}', f'mlp/{ours}/{leaf}')
            for theirs, ours in (('Dense_0', 'up'), ('Dense_1', 'down'))
            for leaf in ('kernel', 'bias')
        ),
        *_affine('decoder/LayerNorm', 'norm', 'scale'),
        *_affine('decoder/LogitsDense', 'head', 'kernel'),
    )
    return NameMap(rows)


def _affine(theirs: str, ours: str, leaf: str) -> tuple[Row, Row]:
    return tuple(Row(f'{theirs}/{name}', (f'{ours}/{name}',), SAME) for name in (leaf, 'bias'))


def _layers(
    network: GIVT, theirs: str, ours: str, heads: tuple[int, int] | None = None, split: bool = True
) -> Row:
    """One array of theirs for all layers; a matrix from or to heads has these as axes of their own."""
    paths = tuple(f'blocks/stack/{layer}/{ours}' for layer in range(network.depth))

    def to_ours(a: np.ndarray) -> tuple[np.ndarray, ...]:
        if heads and not split:
            return tuple(a[:, layer].reshape(math.prod(heads), -1) for layer in range(a.shape[1]))
        return tuple(np.moveaxis(a.reshape(*a.shape[:2], -1) if heads else a, 1, 0))

    def to_theirs(*each: np.ndarray) -> np.ndarray:
        a = np.stack(each, axis=1)
        if not heads:
            return a
        if split:
            return a.reshape(*a.shape[:2], *heads)
        # The layers lie between the two axes of the input.
        return a.reshape(*heads, *a.shape[1:]).transpose(0, 2, 1, 3)

    return Row(theirs, paths, Transform(to_ours, to_theirs))
