"""MaskBit's published names, which are its authors' alone (markweberdev/maskbit, 2409.16211)."""

from collections.abc import Mapping
from typing import Any

from jaxgen.models.maskbit import MaskBit
from jaxgen.weights import maskgit
from jaxgen.weights.names import SAME, NameMap, Row, Transform, fused, linear, norm

CLASSES: tuple[str, ...] = ()  # no library that writes a config.json carries it

_BLOCK = 'blocks/stack/{i}'
# A table that is published with an axis of one before it.
_BATCHED = Transform(lambda a: (a[0],), lambda a: a[None])

inputs = maskgit.inputs


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """There is no published config.json: the network is that of a config of jaxgen."""
    raise ValueError('MaskBit is published without a config.json; take model.name="maskbit" in a config')


def to_config(network: MaskBit) -> dict[str, Any]:
    """There is no format that others would read."""
    raise ValueError("no other library's folders hold a MaskBit; only its authors' checkpoints do")


def layouts(network: MaskBit) -> dict[str, NameMap]:
    """Every published layout of this network, by name."""
    return {'authors': authors(network.bits, network.groups)}


def authors(bits: bool, groups: int) -> NameMap:
    """The authors' names; networks differ in whether tokens are bits, and in how many groups."""
    theirs, attention = 'transformer.layers.{i}', f'{_BLOCK}/attention'
    kernels, biases = (
        tuple(f'{attention}/{name}/{leaf}' for name in ('query', 'key', 'value'))
        for leaf in ('kernel', 'bias')
    )
    if bits:
        own = (*linear('input_proj', 'told'), *linear('prediction_layer', 'head'))
    else:
        tables = (Row(f'tok_emb_list.{g}.weight', (f'table_{g}',), SAME) for g in range(groups))
        own = (*tables, *(Row(f'bias.{g}', (f'bias_{g}',), SAME) for g in range(groups)))
    rows = (
        *own,
        Row('class_emb.weight', ('label/table',), SAME),
        Row('pos_emb', ('position',), _BATCHED),
        *norm('first_layer.0', 'first_norm'),
        Row(f'{theirs}.0.mha.in_proj_weight', kernels, fused(3, True)),
        Row(f'{theirs}.0.mha.in_proj_bias', biases, fused(3, False)),
        *linear(f'{theirs}.0.mha.out_proj', f'{attention}/out'),
        *norm(f'{theirs}.0.norm', f'{_BLOCK}/attention_norm'),
        *linear(f'{theirs}.1.net.0', f'{_BLOCK}/mlp/up'),
        *linear(f'{theirs}.1.net.2', f'{_BLOCK}/mlp/down'),
        *norm(f'{theirs}.1.norm', f'{_BLOCK}/mlp_norm'),
        *linear('last_layer.0', 'last'),
        *norm('last_layer.2', 'last_norm'),
    )
    return NameMap(rows, ignored=('bits_to_indices',))
