"""One segment of a stack: alike layers run by one compiled body.

How a layer is called, what it hands out, when it is skipped, what of it is kept for the backward pass, and
where its activations lie on the mesh.
"""

# B batch, L tokens, D width

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, PartitionSpec

Tree = Any

SAVED_NAMES = ('query', 'key', 'value', 'attention', 'attention_statistics', 'mlp_hidden', 'branch')
REMAT = ('none', 'full', 'dots', 'named')
BATCH_AXES = ('data', 'fsdp')
HANDLED = ('out', 'delta')  # the sites that need no help from the block


@dataclasses.dataclass(frozen=True)
class Segment:
    """`length` layers of one unbound block (made with parent=None).

    A block is called as `block(x, *inputs, per_layer=None, train=False) -> x`, keeps the shape and dtype of
    x, and may `expose` what it wants to be captured. If it has a method `prepare(*inputs)`, that is computed
    for all layers at once, before the first, and each is given its part as `prepared`.
    """

    block: nn.Module
    length: int


def expose(block: nn.Module, site: str, value: jax.Array) -> None:
    """Lets `value` be captured under the name `site`; costs nothing where nobody asks.

    Like flax's sow, but a site may bear the name of the submodule whose output it is.
    """
    if block.is_mutable_collection('features') and not block.is_initializing():
        block.put_variable('features', site, value)


@dataclasses.dataclass(frozen=True)
class Capture:
    """One name of `capture`: a site in one layer, or in all (layer None)."""

    name: str
    layer: int | None
    site: str


@dataclasses.dataclass(frozen=True)
class SegmentRun:
    """How one segment is run: (params, x, captures, per_layer, memory) -> (x, single, stacked, deltas).

    `per_layer` and `memory` are this segment's part; `single` and `stacked` the captures of one layer and of
    all.
    """

    segment: Segment
    inputs: tuple[Any, ...]
    start: int
    train: bool
    scan: bool | int
    remat: str

    def __call__(
        self, params: Tree, x_BLD: jax.Array, captures: list[Capture], per_layer: dict, memory: Tree
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array], jax.Array | None]:
        scanned = {
            'params': params,
            'block': {k: v for k, v in per_layer.items() if k not in ('residual', 'reuse')} or None,
            'prepared': self._prepared(params),
            'residual': per_layer.get('residual'),
            'reuse': per_layer.get('reuse'),
            'delta': memory['delta'] if memory else None,
        }
        shapes = self._site_shapes(scanned, x_BLD, captures)
        stacked = [c for c in captures if c.layer is None]
        single = [c for c in captures if c.layer is not None]
        sites = tuple(sorted({c.site for c in captures} | ({'delta'} if memory is not None else set())))
        memory_dtype = memory['delta'].dtype if memory else x_BLD.dtype
        layer = self._rematerialised(lambda x, one: self._layer(x, one, sites))

        def body(carry: tuple, step: tuple) -> tuple:
            x, buffers = carry
            index, one = step
            x, values = layer(x, one)
            # One layer of many: a carried buffer and a choice, so that the others' values are never kept.
            buffers = {c.name: jnp.where(index == c.layer, values[c.site], buffers[c.name]) for c in single}
            kept = {c.name: values[c.site] for c in stacked}
            return (x, buffers), (kept, None if memory is None else values['delta'].astype(memory_dtype))

        carry = (x_BLD, {c.name: jnp.zeros(shapes[c.site].shape, shapes[c.site].dtype) for c in single})
        indices = np.arange(self.start, self.start + self.segment.length)
        if self.scan:
            with _scope(self.start):
                (x_BLD, buffers), (kept, deltas) = jax.lax.scan(
                    body, carry, (indices, scanned), unroll=int(self.scan)
                )
            return x_BLD, buffers, kept, deltas
        outputs = []
        for i, index in enumerate(indices):
            with _scope(index):
                carry, output = body(carry, (index, jax.tree.map(lambda a, i=i: a[i], scanned)))
            outputs.append(output)
        kept, deltas = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
        return carry[0], carry[1], kept, deltas

    def _layer(
        self, x_BLD: jax.Array, one: dict, sites: tuple[str, ...]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        before, exposed = x_BLD, {}
        if one['reuse'] is None:
            x_BLD, exposed = self._block(one, x_BLD, any(s not in HANDLED for s in sites))
            delta = x_BLD - before
        else:
            held = one['delta'].astype(x_BLD.dtype)

            def compute(x: jax.Array) -> tuple[jax.Array, jax.Array]:
                y, _ = self._block(one, x, False)
                return y, y - x

            x_BLD, delta = jax.lax.cond(one['reuse'], lambda x: (x + held, held), compute, x_BLD)
        if one['residual'] is not None:
            x_BLD = x_BLD + one['residual'].astype(x_BLD.dtype)
        x_BLD = constrain(x_BLD)
        values = {**exposed, 'out': x_BLD, 'delta': delta}
        return x_BLD, {site: values[site] for site in sites}

    def _prepared(self, params: Tree) -> Tree:
        block = self.segment.block
        if not hasattr(block, 'prepare'):
            return None
        return jax.vmap(lambda one: block.apply({'params': one}, *self.inputs, method='prepare'))(params)

    def _block(self, one: dict, x_BLD: jax.Array, expose: bool) -> tuple[jax.Array, dict]:
        run = self.segment.block.apply
        variables, options = {'params': one['params']}, {'per_layer': one['block'], 'train': self.train}
        if one['prepared'] is not None:
            options['prepared'] = one['prepared']
        if not expose:
            return run(variables, x_BLD, *self.inputs, **options), {}
        x_BLD, state = run(variables, x_BLD, *self.inputs, **options, mutable=['features'])
        return x_BLD, flatten_dict(state.get('features', {}), sep='/')

    def _site_shapes(self, scanned: dict, x_BLD: jax.Array, captures: list[Capture]) -> dict[str, Any]:
        """Shapes of all sites that can be captured here; asks the block only where a name needs it."""
        shapes = {'out': x_BLD, 'delta': x_BLD}
        if all(c.site in HANDLED for c in captures):
            return shapes

        def first(scanned: dict, x: jax.Array) -> dict:
            one = jax.tree.map(lambda a: a[0], scanned)
            return self._block(one, x, True)[1]

        shapes |= jax.eval_shape(first, scanned, x_BLD)
        for c in captures:
            if c.site not in shapes:
                raise ValueError(
                    f'cannot capture {c.name!r}: layers {self.start} to '
                    f'{self.start + self.segment.length - 1} have the sites {sorted(shapes)}; ask for '
                    "'<layer>.<site>' or '*.<site>'"
                )
            if scanned['reuse'] is not None and c.site not in HANDLED:
                raise ValueError(
                    f'cannot capture {c.name!r} inside layers that may be reused; capture {HANDLED} only'
                )
        return shapes

    def _rematerialised(self, layer: Callable) -> Callable:
        if self.remat == 'none':
            return layer
        policies = jax.checkpoint_policies
        policy = {
            'full': None,
            'dots': policies.dots_with_no_batch_dims_saveable,
            'named': policies.save_only_these_names(*SAVED_NAMES),
        }[self.remat]
        # Inside a scan nothing can be merged with the forward pass, and the barriers against it cost time.
        return jax.checkpoint(layer, policy=policy, prevent_cse=not self.scan)


def _scope(layer: int) -> AbstractContextManager:
    """The name of a layer, or of the layers scanned from there on, in profiles and diagnoses."""
    return jax.named_scope(f'layers_{layer}')


def constrain(x_BLD: jax.Array, whole: bool = False) -> jax.Array:
    """Places activations on the mesh: batch over data and fsdp, tokens over sequence. No mesh: no-op.

    `whole` keeps all tokens of an example together, as what all others look at.
    """
    batch = fitting(BATCH_AXES, x_BLD.shape[0])
    tokens = () if whole else fitting(('sequence',), x_BLD.shape[1])
    if not batch and not tokens:
        return x_BLD
    free = PartitionSpec.UNCONSTRAINED
    return jax.lax.with_sharding_constraint(x_BLD, PartitionSpec(batch or free, tokens or None, None))


def exchange(y_BLD: jax.Array) -> jax.Array:
    """Places the product of a few rows and a large kernel: made where the kernel's shards are, then by rows.

    So the rows travel, which are fewer bytes than the kernel. No mesh: no-op.
    """
    if 'fsdp' in fitting(('fsdp',), y_BLD.shape[-1]):
        free = PartitionSpec.UNCONSTRAINED
        rows = PartitionSpec(fitting(('data',), y_BLD.shape[0]) or free, None, 'fsdp')
        y_BLD = jax.lax.with_sharding_constraint(y_BLD, rows)
    return constrain(y_BLD)


def batch_shards(batch: int) -> int:
    """Over how many devices `constrain` splits a batch of this size."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in fitting(BATCH_AXES, batch))


def fitting(names: tuple[str, ...], length: int) -> tuple[str, ...]:
    """Those of the mesh's axes that a dimension can be split over."""
    mesh, chosen = jax.sharding.get_abstract_mesh(), []
    for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types):
        if name in names and kind == AxisType.Auto and size > 1 and length % size == 0:
            chosen.append(name)
            length //= size
    return tuple(chosen)
