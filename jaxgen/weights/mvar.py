"""M-VAR's published names: VAR's, and those of mamba_ssm's Mamba2 (OliverRensu/MVAR, 2411.10433).

What that layer reads a token by is one matrix there: gate, value, what is written, what is read, and steps.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.models.mvar import EXPANSION, MVAR
from jaxgen.weights import var
from jaxgen.weights.names import MATRIX, SAME, NameMap, Row, Transform

CLASSES: tuple[str, ...] = ()  # no library that writes a config.json carries it

_BLOCK = 'blocks/stack/{i}'
_CHANNELS = Transform(lambda a: (a[:, 0].T,), lambda a: a.T[:, None])

inputs = var.inputs


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """There is no published config.json: the network is that of a config of jaxgen."""
    raise ValueError('M-VAR is published without a config.json; take configs/mvar_imagenet.py')


def to_config(network: MVAR) -> dict[str, Any]:
    """There is no format that others would read."""
    raise ValueError("no other library's folders hold an M-VAR; only its authors' checkpoints do")


def layouts(network: MVAR) -> dict[str, NameMap]:
    """Every published layout of this network, by name."""
    return {'authors': authors(network)}


def authors(network: MVAR) -> NameMap:
    """The authors' names; how the one matrix is cut follows from the network's sizes."""
    own = var.authors(False)
    across, inner = f'{_BLOCK}/across', EXPANSION * network.width
    ends = np.cumsum([inner, inner, network.state, network.state])
    kernels = ('gate', 'value', 'write', 'read', 'step')
    one = Transform(
        lambda a: tuple(part.T for part in np.split(a, ends)),
        lambda *each: np.concatenate([part.T for part in each]),
    )
    theirs = 'blocks.{i}.mamba'
    rows = (
        Row(f'{theirs}.in_proj.weight', tuple(f'{across}/{name}/kernel' for name in kernels), one),
        Row(f'{theirs}.conv1d.weight', (f'{across}/convolution/taps',), _CHANNELS),
        Row(f'{theirs}.conv1d.bias', (f'{across}/convolution/bias',), SAME),
        Row(f'{theirs}.dt_bias', (f'{across}/step_bias',), SAME),
        Row(f'{theirs}.A_log', (f'{across}/decay_bias',), SAME),
        Row(f'{theirs}.D', (f'{across}/skip_scale',), SAME),
        Row(f'{theirs}.norm.weight', (f'{across}/norm/scale',), SAME),
        Row(f'{theirs}.out_proj.weight', (f'{across}/out/kernel',), MATRIX),
    )
    return NameMap((*own.rows, *rows), ignored=(*own.ignored, 'blocks.{i}.attn.patch_nums'))
