"""Name maps: a published checkpoint's names <-> the paths of a parameter tree, both ways from one table.

A row pairs one published name with one or several of our paths (a fused projection is several) and says
how the arrays turn into each other. `{i}` stands for the layer in both; in our trees layers are stacked
segment by segment, which is undone and redone here. What does not fit is reported at once, with the
nearest names.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxgen.layers.stack import recut

Tree = Any
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """How one published array becomes ours (one or several) and back."""

    to_ours: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    to_theirs: Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
    """One published name and what it is here.

    `optional` rows may be absent (a part that not every checkpoint has). A row with `{i}` in the published
    name alone is repeated there in every layer.
    """

    theirs: str
    ours: tuple[str, ...]
    transform: Transform
    optional: bool = False

    @property
    def repeated(self) -> bool:
        """Whether the published layout holds one thing of ours once a layer."""
        return '{i}' in self.theirs and '{i}' not in self.ours[0]


@dataclasses.dataclass(frozen=True)
class NameMap:
    """A table of rows.

    `ignored` are published names that hold nothing learned, `ours_only` our paths that the layout lacks.
    """

    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    ours_only: tuple[str, ...] = ()


SAME = Transform(lambda a: (a,), lambda a: a)
MATRIX = Transform(lambda a: (a.T,), lambda a: a.T)
# A depthwise convolution [channel, 1, row, column] <-> [row, column, channel].
DEPTHWISE = Transform(lambda a: (a[:, 0].transpose(1, 2, 0),), lambda a: a.transpose(2, 0, 1)[:, None])


def fused(parts: int, matrix: bool) -> Transform:
    """Projections published as one, stacked along the output."""

    def split(a: np.ndarray) -> tuple[np.ndarray, ...]:
        if a.shape[0] % parts:
            raise ValueError(f'an output of {a.shape[0]} does not split into {parts}')
        return tuple(part.T if matrix else part for part in np.split(a, parts))

    return Transform(split, lambda *each: np.concatenate([part.T if matrix else part for part in each]))


def patch_kernel(patch: int) -> Transform:
    """A convolution over patches [out, channel, row, column] <-> a matrix [row x column x channel, out]."""

    def to_theirs(a: np.ndarray) -> np.ndarray:
        return a.reshape(patch, patch, -1, a.shape[-1]).transpose(3, 2, 0, 1)

    return Transform(lambda a: (a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]),), to_theirs)


def linear(theirs: str, *ours: str, optional: bool = False) -> tuple[Row, Row]:
    """Rows of a linear layer with bias; several of ours are one fused layer of theirs."""
    kernels, biases = (tuple(f'{path}/{leaf}' for path in ours) for leaf in ('kernel', 'bias'))
    weight, bias = (MATRIX, SAME) if len(ours) == 1 else (fused(len(ours), True), fused(len(ours), False))
    return (
        Row(f'{theirs}.weight', kernels, weight, optional),
        Row(f'{theirs}.bias', biases, bias, optional),
    )


def norm(theirs: str, ours: str, optional: bool = False) -> tuple[Row, Row]:
    """Rows of an affine layer norm."""
    return (
        Row(f'{theirs}.weight', (f'{ours}/scale',), SAME, optional),
        Row(f'{theirs}.bias', (f'{ours}/bias',), SAME, optional),
    )


def to_jaxgen(table: NameMap, published: Mapping[str, np.ndarray], like: Tree = None) -> Tree:
    """A parameter tree from published arrays.

    With `like` (arrays or ShapeDtypeStructs) the result has its layout and dtypes and every leaf is
    checked; leaves that the published layout lacks are taken from it. Without, layers are cut into the
    fewest segments.
    """
    flat, problems, unexpected = _translated(table, published)
    expected = None if like is None else unstack(like)
    if expected is None:
        missing = _missing_rows(table, published)
    else:
        own = {path for path in expected if path in table.ours_only and path not in flat}
        for path in own:
            if isinstance(expected[path], jax.ShapeDtypeStruct):
                problems.append(f'this layout has no {path!r}: give its value in `like`')
            flat[path] = expected[path]
        missing = sorted({_their_name(table, path) for path in expected if path not in flat})
        unexpected += sorted({_their_name(table, path) for path in flat if path not in expected})
        problems += [
            f"{_their_name(table, path)}: becomes {flat[path].shape} but the network's {path} is {leaf.shape}"
            for path, leaf in expected.items()
            if path in flat and flat[path].shape != leaf.shape
        ]
    _report(problems, missing, unexpected)
    if expected is None:
        return restack(flat)
    flat = {path: np.asarray(flat[path], leaf.dtype) for path, leaf in expected.items()}
    return recut(restack(flat), like)


def to_published(table: NameMap, tree: Tree) -> Arrays:
    """The published arrays of a parameter tree."""
    flat = {path: np.asarray(leaf) for path, leaf in unstack(tree).items()}
    published: Arrays = {}
    used: set[str] = set()
    layers = 1 + max((int(m[1]) for path in flat if (m := re.search(r'stack/(\d+)/', path))), default=-1)
    missing = []
    for row in table.rows:
        for i in range(layers) if '{i}' in row.theirs else [None]:
            paths = [_fill(path, i) for path in row.ours]
            absent = [path for path in paths if path not in flat]
            if not absent:
                published[_fill(row.theirs, i)] = row.transform.to_theirs(*(flat[path] for path in paths))
                used.update(paths)
            elif not row.optional or len(absent) < len(paths):
                missing += absent
    unexpected = [path for path in flat if path not in used and path not in table.ours_only]
    _report([], missing, unexpected)
    return published


def unstack(tree: Tree) -> dict[str, Any]:
    """{'a/stack/<layer>/b': leaf} of a tree; ShapeDtypeStructs stay abstract."""
    flat: dict[str, Any] = {}
    for prefix, node in _nodes(tree):
        if not isinstance(node, _Stacked):
            flat[prefix] = node
            continue
        start = 0
        for number in range(len(node.segments)):
            leaves = dict(_nodes(node.segments[str(number)]))
            length = next(iter(leaves.values())).shape[0]
            for path, leaf in leaves.items():
                for layer in range(length):
                    flat[f'{prefix}/{start + layer}/{path}'] = _layer_of(leaf, layer)
            start += length
    return flat


def restack(flat: Mapping[str, np.ndarray]) -> Tree:
    """The inverse of unstack, with the fewest segments."""
    tree: dict[str, Any] = {}
    layers: dict[str, dict[int, Arrays]] = {}
    for path, leaf in flat.items():
        found = re.fullmatch(r'((?:.*?/)?stack)/(\d+)/(.*)', path)
        if found:
            layers.setdefault(found[1], {}).setdefault(int(found[2]), {})[found[3]] = leaf
        else:
            _put(tree, path, leaf)
    for prefix, by_layer in layers.items():
        groups: list[list[Arrays]] = []
        for layer in sorted(by_layer):
            if groups and _signature(groups[-1][0]) == _signature(by_layer[layer]):
                groups[-1].append(by_layer[layer])
            else:
                groups.append([by_layer[layer]])
        for number, group in enumerate(groups):
            for path in group[0]:
                _put(tree, f'{prefix}/{number}/{path}', np.stack([leaves[path] for leaves in group]))
    return tree


@dataclasses.dataclass(frozen=True)
class _Stacked:
    segments: dict[str, Tree]


def _nodes(tree: Tree, prefix: str = '') -> list[tuple[str, Any]]:
    nodes: list[tuple[str, Any]] = []
    for key, value in tree.items():
        path = f'{prefix}{key}'
        if key == 'stack':
            nodes.append((path, _Stacked(value)))
        elif isinstance(value, Mapping):
            nodes += _nodes(value, f'{path}/')
        else:
            nodes.append((path, value))
    return nodes


def _layer_of(leaf: Any, layer: int) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return np.asarray(leaf)[layer]


def _put(tree: dict[str, Any], path: str, leaf: np.ndarray) -> None:
    *parents, name = path.split('/')
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = leaf


def _signature(leaves: Arrays) -> dict[str, tuple]:
    return {path: (leaf.shape, leaf.dtype) for path, leaf in leaves.items()}


def _fill(pattern: str, layer: int | None) -> str:
    return pattern if layer is None else pattern.replace('{i}', str(layer))


def _match(pattern: str, name: str) -> tuple[bool, int | None]:
    if '{i}' not in pattern:
        return pattern == name, None
    found = re.fullmatch(re.escape(pattern).replace(r'\{i\}', r'(\d+)'), name)
    return found is not None, int(found[1]) if found else None


def _their_name(table: NameMap, path: str) -> str:
    for row in table.rows:
        for ours in row.ours:
            hit, layer = _match(ours, path)
            if hit:
                return _fill(row.theirs, layer if not row.repeated else 0)
    return f'(no published name) {path}'


def _translated(table: NameMap, published: Mapping[str, np.ndarray]) -> tuple[Arrays, list[str], list[str]]:
    """(our arrays a layer, problems, names that no row has)."""
    flat: Arrays = {}
    problems, unexpected = [], []
    for name, array in published.items():
        hits = [(row, layer) for row in table.rows for hit, layer in [_match(row.theirs, name)] if hit]
        if not hits:
            if not any(_match(pattern, name)[0] for pattern in table.ignored):
                unexpected.append(name)
            continue
        row, layer = hits[0]
        try:
            arrays = row.transform.to_ours(np.asarray(array))
        except ValueError as error:
            problems.append(f'{name} of shape {array.shape}: {error}')
            continue
        for path, ours in zip((_fill(path, layer) for path in row.ours), arrays):
            if row.repeated and path in flat and not np.array_equal(flat[path], ours):
                problems.append(f'{name}: differs from that of another layer, but {path} is one for all')
            flat[path] = ours
    return flat, problems, unexpected


def _missing_rows(table: NameMap, published: Mapping[str, np.ndarray]) -> list[str]:
    matches = [_match(row.theirs, name) for row in table.rows for name in published]
    layers = sorted({layer for hit, layer in matches if hit and layer is not None})
    return [
        _fill(row.theirs, layer)
        for row in table.rows
        if not row.optional
        for layer in (layers if '{i}' in row.theirs else [None])
        if _fill(row.theirs, layer) not in published
    ]


def _report(problems: list[str], missing: list[str], unexpected: list[str], shown: int = 12) -> None:
    if not problems and not missing and not unexpected:
        return
    lines = list(problems[:shown])
    for name in missing[:shown]:
        near = difflib.get_close_matches(name, unexpected, 1)
        lines.append(f'missing: {name}' + (f' (nearest there: {near[0]})' if near else ''))
    for name in unexpected[:shown]:
        near = difflib.get_close_matches(name, missing, 1)
        lines.append(f'unexpected: {name}' + (f' (nearest wanted: {near[0]})' if near else ''))
    counts = f'{len(problems)} misshapen, {len(missing)} missing, {len(unexpected)} unexpected'
    raise ValueError(f'these weights do not fit the network ({counts}):\n  ' + '\n  '.join(lines))
