"""A parameter tree as named leaves, layer by layer: `blocks/stack/7/mlp/up/kernel` whatever its segments."""

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax

from jaxgen.layers.stack import canonical

Tree = Any

_STACKED = re.compile(r'((?:.*?/)?stack)/(\d+)/(.*)')


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf, with the path of each of its layers if it is `stacked`, else its own."""

    value: Any
    paths: tuple[str, ...]
    stacked: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape behind one path."""
        return tuple(self.value.shape[1:] if self.stacked else self.value.shape)


def leaves(tree: Tree) -> list[Leaf]:
    """Every leaf, in jax's order."""
    named = [
        (jax.tree_util.keystr(path, simple=True, separator='/'), value)
        for path, value in jax.tree_util.tree_leaves_with_path(tree)
    ]
    lengths: dict[str, dict[int, int]] = collections.defaultdict(dict)
    for path, value in named:
        if found := _STACKED.fullmatch(path):
            lengths[found[1]][int(found[2])] = value.shape[0]

    def leaf(path: str, value: Any) -> Leaf:
        found = _STACKED.fullmatch(path)
        if not found:
            return Leaf(value, (path,), False)
        stack, segment, rest = found[1], int(found[2]), found[3]
        first = sum(length for number, length in lengths[stack].items() if number < segment)
        layers = range(first, first + value.shape[0])
        return Leaf(value, tuple(f'{stack}/{layer}/{rest}' for layer in layers), True)

    return [leaf(path, value) for path, value in named]


def fewest_segments(flat: Mapping[str, jax.ShapeDtypeStruct]) -> Tree:
    """The tree of these leaves, alike neighbouring layers stacked."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        if _STACKED.fullmatch(path):
            leaf = jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)
        *parents, name = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return canonical(tree)
