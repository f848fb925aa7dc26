"""Name maps: a published checkpoint's names <-> the paths of a parameter tree, both ways from one table.

A row pairs one published name with one or several of our paths (a fused projection is several) and says
how the arrays turn into each other. `{i}` stands for the layer in both; in our trees layers are stacked
segment by segment, which is undone and redone here. Whether all of it fits is known from names and shapes,
before an array is read; what does not is reported at once, with the nearest names.
"""

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxgen.weights.loading import fetched, filled
from jaxgen.weights.safetensors import PATIENCE, Entry
from jaxgen.weights.trees import Leaf, fewest_segments, leaves

Tree = Any
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """How one published array becomes ours (one or several) and back.

    A matter of layout alone, also right for an array of one repeated value: shapes are asked for that way.
    Best made of views, as nothing is then copied before it lies where it belongs.
    """

    to_ours: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    to_theirs: Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
    """One published name and what it is here.

    `optional` rows may be absent (a part that not every checkpoint has). A row with `{i}` in the published
    name alone is repeated there in every layer. Where several rows have the same path, the published names
    are alternatives: any may be read (if several are there they must agree), the first row's is written.
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

    `ignored` are published names that hold nothing wanted here (`*` stands for anything), `ours_only` our
    paths that the layout lacks.
    """

    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    ours_only: tuple[str, ...] = ()


SAME = Transform(lambda a: (a,), lambda a: a)
MATRIX = Transform(lambda a: (a.T,), lambda a: a.T)
# A convolution [out, in, row, column] <-> [row, column, in, out].
CONV = Transform(lambda a: (a.transpose(2, 3, 1, 0),), lambda a: a.transpose(3, 2, 0, 1))
# A matrix that is published as a convolution of one pixel.
CONV_1X1 = Transform(lambda a: (a[:, :, 0, 0].T,), lambda a: a.T[:, :, None, None])
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


@dataclasses.dataclass(frozen=True)
class Source:
    """What one of our arrays (of one layer) is made of, and the shape it will have."""

    name: str
    row: Row
    part: int
    shape: tuple[int, ...]
    published: np.ndarray

    def read(self) -> np.ndarray:
        """The array, a view on the published one where the transform is."""
        return self.row.transform.to_ours(np.asarray(self.published))[self.part]


@dataclasses.dataclass(frozen=True)
class Match:
    """What a table makes of published arrays, by names and shapes."""

    sources: dict[str, Source]
    copies: list[tuple[str, Source]]  # of what another name gives already
    ignored: list[str]
    unexpected: list[str]
    problems: list[str]

    @property
    def used(self) -> set[str]:
        """The published names that are read."""
        return {source.name for source in self.sources.values()} | {copy.name for _, copy in self.copies}


def match(table: NameMap, published: Mapping[str, np.ndarray]) -> Match:
    """The rows of a table that published arrays belong to."""
    rows: dict[str, Row] = {}
    for row in table.rows:
        rows.setdefault(row.theirs, row)
    ignored = re.compile('|'.join(fnmatch.translate(name.replace('{i}', '[0-9]*')) for name in table.ignored))
    found = Match({}, [], [], [], [])
    for name, array in published.items():
        row, layer = next(((rows[p], layer) for p, layer in _patterns(name) if p in rows), (None, None))
        if row is None:
            skipped = table.ignored and ignored.match(name)
            (found.ignored if skipped else found.unexpected).append(name)
            continue
        try:
            shapes = [ours.shape for ours in row.transform.to_ours(_hollow(array.shape))]
        except (ValueError, IndexError) as error:
            found.problems.append(f'{name} of shape {array.shape}: {error}')
            continue
        for part, (path, shape) in enumerate(zip(row.ours, shapes)):
            path, source = _fill(path, layer), Source(name, row, part, shape, array)
            if path in found.sources:
                found.copies.append((path, source))
            else:
                found.sources[path] = source
    return found


def to_jaxgen(table: NameMap, published: Mapping[str, np.ndarray], like: Tree = None) -> Tree:
    """A parameter tree from published arrays.

    With `like` (arrays or ShapeDtypeStructs) the result has its layout, dtypes and shardings and every leaf
    is checked; leaves that the published layout lacks are taken from it. Without, layers are cut into the
    fewest segments of NumPy arrays.
    """
    found = match(table, published)
    check(table, found, like)
    if like is None:
        like = fewest_segments(
            {path: jax.ShapeDtypeStruct(s.shape, s.published.dtype) for path, s in found.sources.items()}
        )
    return fill(found, like)


def fill(found: Match, like: Tree) -> Tree:
    """The tree, once it is checked; leaves that the published layout lacks stay what they are."""

    def value(leaf: Leaf) -> Any:
        sources = [found.sources[path] for path in leaf.paths if path in found.sources]
        if not sources:
            return leaf.value
        return filled(leaf.value, [source.read for source in sources], leaf.stacked)

    values, wanted = [], leaves(like)
    sizes = [leaf.value.size * leaf.value.dtype.itemsize for leaf in wanted]
    with tqdm(total=sum(sizes), desc='load weights', unit='B', unit_scale=True, delay=PATIENCE) as bar:
        for leaf, size in zip(wanted, sizes):
            values.append(value(leaf))
            bar.update(size)
    return jax.tree.structure(like).unflatten(values)


def lacks(table: NameMap, found: Match, leaf: Leaf) -> bool:
    """Whether a leaf is one that the published layout does not have, nor has to."""
    return all(path in table.ours_only and path not in found.sources for path in leaf.paths)


def check(table: NameMap, found: Match, like: Tree = None) -> None:
    """Refuse published arrays that do not make a tree like this one, with everything that is wrong."""
    problems, unexpected = list(found.problems), list(found.unexpected)
    for path, copy in found.copies:
        first = found.sources[path]
        if copy.shape != first.shape or not np.array_equal(copy.read(), first.read()):
            problems.append(f'{copy.name}: differs from {first.name}, but {path} is one for all')
    if like is None:
        _refuse(problems, _missing_rows(table, found), unexpected)
        return
    missing, wanted = set(), set()
    for leaf in leaves(like):
        wanted.update(leaf.paths)
        if lacks(table, found, leaf):
            if isinstance(leaf.value, jax.ShapeDtypeStruct):
                problems.append(f'this layout has no {leaf.paths[0]!r}: give its value in `like`')
            continue
        for path in leaf.paths:
            source = found.sources.get(path)
            if source is None:
                missing.add(_their_name(table, path))
            elif source.shape != leaf.shape:
                problems.append(
                    f"{source.name}: becomes {source.shape} but the network's {path} is {leaf.shape}"
                )
    unexpected += sorted({source.name for path, source in found.sources.items() if path not in wanted})
    _refuse(problems, sorted(missing), unexpected)


def entries(table: NameMap, tree: Tree, dtype: str | None = None) -> list[Entry]:
    """The published arrays of a parameter tree as a writer takes them, in its own or another floating dtype.

    Each is fetched from the devices when it is made, of a stack one layer. An abstract tree gives names,
    shapes and dtypes alone.
    """
    slots = {
        path: (leaf, layer if leaf.stacked else None)
        for leaf in leaves(tree)
        for layer, path in enumerate(leaf.paths)
    }
    published: list[Entry] = []
    written: set[str] = set()
    missing: list[str] = []
    for row, layers in zip(table.rows, _layers_of_rows(table, slots)):
        paths = {i: [_fill(path, i) for path in row.ours] for i in layers}
        if any(path in written for each in paths.values() for path in each):
            continue
        if not layers and not row.optional:
            missing += row.ours
        for i, each in paths.items():
            absent = [path for path in each if path not in slots]
            if not absent:
                published.append(_entry(_fill(row.theirs, i), row, [slots[path] for path in each], dtype))
            elif not row.optional or len(absent) < len(each):
                missing += absent
        written.update(path for each in paths.values() for path in each if path in slots)
    unexpected = [path for path in slots if path not in written and path not in table.ours_only]
    _refuse([], missing, unexpected)
    return published


def to_published(table: NameMap, tree: Tree) -> Arrays:
    """The published arrays of a parameter tree, all of them made."""
    return {entry.name: entry.make() for entry in entries(table, tree)}


def _entry(name: str, row: Row, slots: list[tuple[Leaf, int | None]], dtype: str | None) -> Entry:
    stored = np.result_type(*(leaf.value.dtype for leaf, _ in slots))
    kept = jnp.dtype(dtype) if dtype and jnp.issubdtype(stored, jnp.floating) else stored

    def make() -> np.ndarray:
        ours = (fetched(leaf.value, layer) for leaf, layer in slots)
        return np.asarray(row.transform.to_theirs(*ours), kept)

    shape = row.transform.to_theirs(*(_hollow(leaf.shape) for leaf, _ in slots)).shape
    return Entry(name, shape, np.dtype(kept), make)


def _hollow(shape: tuple[int, ...]) -> np.ndarray:
    """An array of a shape that takes no memory."""
    return np.broadcast_to(np.int8(0), shape)


def _fill(pattern: str, layer: int | None) -> str:
    return pattern if layer is None else pattern.replace('{i}', str(layer))


def _patterns(name: str) -> Iterator[tuple[str, int | None]]:
    """A name as it is, and with each of its numbers taken for the layer."""
    yield name, None
    for number in re.finditer(r'\d+', name):
        yield f'{name[: number.start()]}{{i}}{name[number.end() :]}', int(number[0])


def _their_name(table: NameMap, path: str) -> str:
    for pattern, layer in _patterns(path):
        for row in table.rows:
            if pattern in row.ours:
                return _fill(row.theirs, 0 if row.repeated else layer)
    return f'(no published name) {path}'


def _missing_rows(table: NameMap, found: Match) -> list[str]:
    """Names that a whole checkpoint would have, judged by the layers of which something is there."""
    missing = []
    for row, layers in zip(table.rows, _layers_of_rows(table, found.sources)):
        for i in () if row.optional else layers or ['{i}']:
            if not all(_fill(path, i) in found.sources for path in row.ours):
                missing.append(_fill(row.theirs, i))
    return missing


def _layers_of_rows(table: NameMap, paths: Iterable[str]) -> list[list[int | None]]:
    """The layers that each row stands for: all of its stack, of which some paths are there."""
    stacks: dict[str, set[int]] = {}
    for path in paths:
        for pattern, layer in _patterns(path):
            if layer is not None:
                stacks.setdefault(_before_layer(pattern), set()).add(layer)
    named: dict[str, set[int]] = {}
    for row in table.rows:
        if '{i}' in row.ours[0]:
            named.setdefault(_before_layer(row.theirs), set()).update(
                stacks.get(_before_layer(row.ours[0]), ())
            )

    def layers(row: Row) -> list[int | None]:
        if '{i}' not in row.theirs:
            return [None]
        there = named.get(_before_layer(row.theirs), set())
        return sorted(there.union(range(len(there))))

    return [layers(row) for row in table.rows]


def _before_layer(pattern: str) -> str:
    return pattern.partition('{i}')[0]


def _refuse(problems: list[str], missing: list[str], unexpected: list[str], shown: int = 12) -> None:
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
