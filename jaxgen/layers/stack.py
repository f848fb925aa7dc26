"""A stack of alike blocks, the one place that knows how layers are run.

Parameters lie under `stack` as one tree a segment, each leaf with the layers as its leading axis: {'stack':
{'0': tree, '1': tree}}. A segment is one compiled body under `lax.scan` (or a Python loop over the same
parameters), recomputed in the backward pass by name. Methods reach into layers from outside: `per_layer`
brings something for each, `capture` hands activations out, `memory` lets layers be skipped (layer caching,
e.g. Ma et al., "Learning-to-Cache", 2406.01733). `recut` re-cuts a tree into other segments, `canonical` into
the fewest.
"""

# B batch, L tokens, D width

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.layers.segment import REMAT, Capture, Segment, SegmentRun, constrain

Tree = Any


class Stack(nn.Module):
    """Runs segments one after another: `stack(x, *inputs) -> (x, features, memory)`.

    `inputs` are the same for all layers and may be static. `per_layer` is a tree of arrays whose leading axis
    is the depth; 'residual' [depth, B, L, D] is added after each layer, 'reuse' bool [depth] says which
    layers to replace by their delta (output minus input) in `memory`, the rest goes to the block. `memory` is
    {'delta': [depth, B, L, D]}, or {} where there is none yet; given one, the deltas of this call come back.
    `capture` names '<layer>.<site>' or '*.<site>' (stacked); sites are 'out', 'delta' and what the block
    exposes. `scan` is how many layers one turn of the loop runs: more hide what devices send better
    and take longer to compile. False is a Python loop.
    """

    segments: tuple[Segment, ...]
    scan: bool | int = True
    remat: str = 'none'

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        *inputs: Any,
        memory: Tree = None,
        per_layer: Tree = None,
        capture: tuple[str, ...] = (),
        train: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array], Tree]:
        if self.remat not in REMAT:
            raise ValueError(f'remat is {self.remat!r}; choose from {REMAT}')
        depth = sum(segment.length for segment in self.segments)
        x_BLD = constrain(x_BLD)
        stack = self._parameters(x_BLD, inputs)
        per_layer = dict(per_layer or {})
        _check_per_layer(per_layer, memory, depth)
        captures = _parse(capture, depth)

        collected: dict[str, Any] = {}
        deltas, start = [], 0
        for number, segment in enumerate(self.segments):
            stop = start + segment.length
            part = jax.tree.map(lambda a, start=start, stop=stop: a[start:stop], (per_layer, memory))
            wanted = [c for c in captures if c.layer is None or start <= c.layer < stop]
            run = SegmentRun(segment, inputs, start, train, self.scan, self.remat)
            x_BLD, single, stacked, delta = run(stack[str(number)], x_BLD, wanted, *part)
            collected.update(single)
            for name, value in stacked.items():
                collected.setdefault(name, []).append(value)
            deltas.append(delta)
            start = stop
        features = {c.name: _joined(collected[c.name]) for c in captures}
        return x_BLD, features, None if memory is None else {'delta': jnp.concatenate(deltas)}

    def _parameters(self, x_BLD: jax.Array, inputs: tuple[Any, ...]) -> dict[str, Tree]:
        if not self.has_variable('params', 'stack'):
            return self.param('stack', _init_stack, self.segments, x_BLD, inputs)
        stack = self.get_variable('params', 'stack')
        lengths, wanted = stack_lengths(stack), [segment.length for segment in self.segments]
        if lengths != wanted:
            raise ValueError(
                f'{"/".join(self.path)}: parameters are cut into segments of {lengths} but the network has '
                f'{wanted}; re-cut them with jaxgen.layers.stack.recut'
            )
        return stack


def _init_stack(
    key: jax.Array, segments: tuple[Segment, ...], x_BLD: jax.Array, inputs: tuple
) -> dict[str, Tree]:
    """One key a layer, so that the draw does not depend on the cut."""
    keys = jax.random.split(key, sum(segment.length for segment in segments))
    stack, start = {}, 0
    for number, segment in enumerate(segments):

        def init(layer_key: jax.Array, block: nn.Module = segment.block) -> Tree:
            return block.init(layer_key, x_BLD, *inputs)['params']

        stack[str(number)] = jax.vmap(init)(keys[start : start + segment.length])
        start += segment.length
    return stack


def _joined(value: jax.Array | list[jax.Array]) -> jax.Array:
    return jnp.concatenate(value) if isinstance(value, list) else value


def _parse(capture: tuple[str, ...], depth: int) -> list[Capture]:
    captures = []
    for name in dict.fromkeys(capture):
        layer, _, site = name.partition('.')
        if not site or not (layer == '*' or (layer.isdigit() and int(layer) < depth)):
            raise ValueError(
                f"cannot capture {name!r}: ask for '<layer>.<site>' with a layer of 0 to {depth - 1}, or for "
                "'*.<site>'; the site is 'out', 'delta' or what the block exposes"
            )
        captures.append(Capture(name, None if layer == '*' else int(layer), site))
    return captures


def _check_per_layer(per_layer: dict, memory: Tree, depth: int) -> None:
    if memory and set(memory) != {'delta'}:
        raise ValueError(f"a stack's memory holds 'delta' only, not {sorted(memory)}")
    if 'reuse' in per_layer and not memory:
        raise ValueError("per_layer has 'reuse' but there is no memory={'delta': ...} to reuse")
    for path, leaf in jax.tree_util.tree_leaves_with_path({'per_layer': per_layer, 'memory': memory}):
        if leaf.shape[:1] != (depth,):
            name = jax.tree_util.keystr(path, simple=True, separator='/')
            raise ValueError(f'{name} is {leaf.shape}; its leading axis must be the depth, {depth}')


def stack_lengths(stack: dict[str, Tree]) -> list[int]:
    """The number of layers of each segment, in order."""
    lengths = []
    for number in range(len(stack)):
        found = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(stack.get(str(number)))}
        if len(found) != 1 or None in found:
            raise ValueError(
                f'segment {number} of a stack has leading axes {sorted(map(str, found))}; every leaf '
                "must have the segment's layers as its leading axis"
            )
        lengths.append(found.pop())
    return lengths


def recut(tree: Tree, layout: Sequence[int] | Tree) -> Tree:
    """Cuts every stack in a tree into segments of the given lengths, or as another tree like it has them.

    Works on parameters, gradients, optimizer states and ShapeDtypeStructs alike. Refuses to put unlike layers
    into one segment.
    """
    if isinstance(layout, list | tuple) and all(isinstance(length, int) for length in layout):
        return _map_stacks(lambda stack: _recut_stack(stack, list(layout)), tree)
    return _map_stacks(lambda stack, like: _recut_stack(stack, stack_lengths(like)), tree, layout)


def canonical(tree: Tree) -> Tree:
    """Joins neighbouring alike segments of every stack: the layout of checkpoints."""
    return _map_stacks(_join_alike, tree)


def _is_stack(node: Any) -> bool:
    return (
        isinstance(node, dict) and bool(node) and all(isinstance(key, str) and key.isdigit() for key in node)
    )


def _holds_stack(node: Any) -> bool:
    return isinstance(node, dict) and _is_stack(node.get('stack'))


def _map_stacks(function: Callable, tree: Tree, *others: Tree) -> Tree:
    def visit(node: Any, *rest: Any) -> Any:
        if not _holds_stack(node):
            return node
        return {
            key: (function if key == 'stack' else lambda *trees: _map_stacks(function, *trees))(
                value, *(other[key] for other in rest)
            )
            for key, value in node.items()
        }

    return jax.tree.map(visit, tree, *others, is_leaf=_holds_stack)


def _alike(one: Tree, other: Tree) -> bool:
    leaves, structure = jax.tree.flatten(one)
    other_leaves, other_structure = jax.tree.flatten(other)
    return structure == other_structure and all(
        a.shape[1:] == b.shape[1:] and a.dtype == b.dtype for a, b in zip(leaves, other_leaves)
    )


def _join_alike(stack: dict[str, Tree]) -> dict[str, Tree]:
    groups: list[list[Tree]] = []
    for number in range(len(stack)):
        segment = stack[str(number)]
        if groups and _alike(groups[-1][0], segment):
            groups[-1].append(segment)
        else:
            groups.append([segment])
    if len(groups) == len(stack):
        return stack
    return {
        str(number): jax.tree.map(lambda *leaves: _concatenate(leaves), *group)
        for number, group in enumerate(groups)
    }


def _recut_stack(stack: dict[str, Tree], lengths: list[int]) -> dict[str, Tree]:
    have = stack_lengths(stack)
    if have == lengths:
        return stack
    if sum(have) != sum(lengths):
        raise ValueError(f'a stack of {sum(have)} layers {have} cannot be cut into {lengths}')
    joined = _join_alike(stack)
    ends = np.cumsum(stack_lengths(joined)).tolist()
    result, start = {}, 0
    for number, length in enumerate(lengths):
        source = next(i for i, end in enumerate(ends) if start < end)
        if start + length > ends[source]:
            raise ValueError(
                f'layers {start} to {start + length - 1} are not alike, they cannot be one segment; the '
                f'segments of alike layers end at {ends}'
            )
        first = start - (ends[source - 1] if source else 0)
        piece = slice(first, first + length)
        result[str(number)] = jax.tree.map(lambda a, piece=piece: _slice(a, piece), joined[str(source)])
        start += length
    return result


def _resized(leaf: jax.ShapeDtypeStruct, length: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((length, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding)


def _concatenate(leaves: Sequence[Any]) -> Any:
    if isinstance(leaves[0], jax.ShapeDtypeStruct):
        return _resized(leaves[0], sum(leaf.shape[0] for leaf in leaves))
    on_host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
    return np.concatenate(leaves) if on_host else jnp.concatenate(leaves)


def _slice(leaf: Any, piece: slice) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return _resized(leaf, piece.stop - piece.start)
    return leaf[piece]
