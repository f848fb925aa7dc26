"""FlexVAR's published names: VAR's, with one table of places (jiaosiyu1999/FlexVAR, 2502.20313)."""

from collections.abc import Mapping
from typing import Any

from jaxgen.models.flexvar import FlexVAR
from jaxgen.weights import var
from jaxgen.weights.names import NameMap, Row, Transform

CLASSES: tuple[str, ...] = ()  # no library that writes a config.json carries it

_TABLE = Transform(lambda a: (a[0].transpose(1, 2, 0),), lambda a: a.transpose(2, 0, 1)[None])

inputs = var.inputs


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """There is no published config.json: the network is that of a config of jaxgen."""
    raise ValueError('FlexVAR is published without a config.json; take configs/flexvar_shapes.py')


def to_config(network: FlexVAR) -> dict[str, Any]:
    """There is no format that others would read."""
    raise ValueError("no other library's folders hold a FlexVAR; only its authors' checkpoints do")


def layouts(network: FlexVAR) -> dict[str, NameMap]:
    """Every published layout of this network, by name."""
    return {'authors': authors()}


def authors() -> NameMap:
    """The authors' names."""
    return var.table(False, (Row('pos_1LC', ('position',), _TABLE),))
