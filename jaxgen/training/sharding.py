"""Where arrays live: the mesh, and parameters placed on it by short rules.

One mesh of four axes (data, fsdp, tensor, sequence) serves every run. The batch is split over data and fsdp,
as in fully sharded data parallelism (ZeRO, Rajbhandari et al. 2020, arXiv:1910.02054; GSPMD, Xu et al. 2021,
arXiv:2105.04663). Without a rule a large array is split over fsdp along its output dimension: for a TPU the
same step is compiled into a faster program so than with the input dimension split. The layer axis of a stack
is never split, because a scan over a split axis gathers it whole.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ('data', 'fsdp', 'tensor', 'sequence')
BATCH_AXES = ('data', 'fsdp')
SMALL = 2**14

Axes = str | tuple[str, ...] | None
Rule = tuple[str, Sequence[Axes]]


def path_string(path: tuple) -> str:
    """A key path as 'model/stack/0/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with every axis of AXES; axes left out are 1, and one entry may be -1 for what remains."""
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    for name, size in shape.items():
        if name not in AXES:
            nearest = difflib.get_close_matches(name, AXES, n=1, cutoff=0.0)[0]
            raise ValueError(f'mesh axis {name!r} does not exist; the nearest of {AXES} is {nearest!r}')
        if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1):
            raise ValueError(
                f'mesh axis {name!r} has size {size!r}; give a positive size, or -1 for what remains'
            )
    sizes = [int(shape.get(name, 1)) for name in AXES]
    if sizes.count(-1) > 1:
        raise ValueError(f'mesh {dict(shape)} has more than one -1; {count} devices can fill only one axis')
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if math.prod(sizes) != count:
        raise ValueError(
            f'mesh {dict(shape)} does not fit {count} devices: its fixed axes take {known}; '
            f'make the product {count}, or set one axis to -1 and let the others divide {count}'
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def place(abstract_tree: Any, rules: Sequence[Rule], mesh: Mesh) -> Any:
    """The tree of NamedSharding for a tree of arrays or shapes.

    A rule is (regex, spec); the first whose regex is found in the leaf's path decides. The spec stands for
    the array's last dimensions, so one rule serves a kernel alone and the same kernel stacked along layers.
    Optimizer state and EMA carry the parameter's path within theirs and so follow its rule; leaves with fewer
    dimensions than the spec (factored statistics) go by the default, single elements are replicated.
    """
    compiled = [(re.compile(pattern), pattern, tuple(spec)) for pattern, spec in rules]
    for _, pattern, spec in compiled:
        _check_axes(pattern, spec, mesh)

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name, shape = path_string(path), tuple(leaf.shape)
        if math.prod(shape) == 1:
            return NamedSharding(mesh, PartitionSpec())
        for regex, pattern, spec in compiled:
            if len(spec) <= len(shape) and regex.search(name):
                return NamedSharding(mesh, _by_rule(name, shape, pattern, spec, mesh))
        return NamedSharding(mesh, _by_default(name, shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, abstract_tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension split over data and fsdp, the others whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_rows(mesh: Mesh, batch: int) -> slice:
    """The rows of a global batch that this process has to provide."""
    shards = _batch_shards(mesh)
    if batch % shards:
        raise ValueError(
            f'a batch of {batch} does not divide over data x fsdp = {shards} shards; '
            f'use a multiple of {shards}'
        )
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    bounds = sorted({index[0].indices(batch)[:2] for index in indices})
    start, stop = bounds[0][0], bounds[-1][1]
    if sum(high - low for low, high in bounds) != stop - start:
        raise ValueError(
            f'process {jax.process_index()} holds rows {bounds} of the batch, which are not one slice; '
            'order the devices of the mesh by process'
        )
    return slice(start, stop)


def to_global(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch (a tree of NumPy arrays) as global arrays on the mesh."""
    sharding = batch_sharding(mesh)
    indices = sharding.addressable_devices_indices_map((_batch_shards(mesh),)).values()
    local_shards = len({index[0].indices(_batch_shards(mesh)) for index in indices})

    def put(path: tuple, rows: np.ndarray) -> jax.Array:
        if rows.ndim == 0 or rows.shape[0] % local_shards:
            raise ValueError(
                f'batch array {path_string(path)!r} of shape {rows.shape} does not divide over the '
                f'{local_shards} batch shards of this process; make its first dimension a multiple of it'
            )
        # An aligned NumPy buffer put on the CPU is aliased, and a loader that reuses it would write through.
        return jax.make_array_from_process_local_data(sharding, np.array(rows, copy=True))

    return jax.tree_util.tree_map_with_path(put, batch)


def _batch_shards(mesh: Mesh) -> int:
    return math.prod(mesh.shape[name] for name in BATCH_AXES)


def _names(axes: Axes) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _has_layer_axis(name: str) -> bool:
    return re.search(r'(^|/)stack/\d+/', name) is not None


def _check_axes(pattern: str, spec: tuple[Axes, ...], mesh: Mesh) -> None:
    used = [name for axes in spec for name in _names(axes)]
    for name in used:
        if name not in mesh.shape:
            raise ValueError(
                f'sharding rule {pattern!r} names axis {name!r}; the mesh has {tuple(mesh.shape)}'
            )
        if used.count(name) > 1:
            raise ValueError(f'sharding rule {pattern!r} uses axis {name!r} twice in {spec}; use it once')


def _by_rule(
    name: str, shape: tuple[int, ...], pattern: str, spec: tuple[Axes, ...], mesh: Mesh
) -> PartitionSpec:
    full = (None,) * (len(shape) - len(spec)) + tuple(axes or None for axes in spec)
    if full and full[0] is not None and _has_layer_axis(name):
        raise ValueError(
            f'sharding rule {pattern!r} splits the layer axis of {name!r} {shape} over {full[0]!r}; '
            'leave the layer axis out of the spec'
        )
    for size, axes in zip(shape, full, strict=True):
        parts = math.prod(mesh.shape[axis] for axis in _names(axes))
        if size % parts:
            raise ValueError(
                f'sharding rule {pattern!r} splits {name!r} {shape}: dimension {size} does not divide over '
                f'axis {axes!r} of {parts} devices; split another dimension or change the mesh'
            )
    return PartitionSpec(*full)


def _by_default(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    parts = mesh.shape['fsdp']
    first = 1 if _has_layer_axis(name) else 0
    if parts == 1 or math.prod(shape) < SMALL:
        return PartitionSpec()
    dividing = [axis for axis in range(first, len(shape)) if shape[axis] % parts == 0]
    if not dividing:
        return PartitionSpec()
    last = len(shape) - 1
    chosen = last if last in dividing else max(dividing, key=lambda axis: shape[axis])
    return PartitionSpec(*('fsdp' if axis == chosen else None for axis in range(len(shape))))
