"""Where arrays live: the mesh, and parameters placed on it by short rules.

One mesh of four axes (data, fsdp, tensor, sequence) serves every run (GSPMD, Xu et al. 2021,
arXiv:2105.04663). The batch is split over data and fsdp. Parameters are split over fsdp along their output
dimension, for which a TPU's program is faster than for the input's, and over tensor as in Megatron-LM
(Shoeybi et al. 2019, arXiv:1909.08053); what is kept beside them, moments and averages, over data as well
(ZeRO, Rajbhandari et al. 2020, arXiv:1910.02054). The layer axis of a stack is never split, because a scan
over a split axis gathers it whole.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.extend import core
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ('data', 'fsdp', 'tensor', 'sequence')
BATCH_AXES = ('data', 'fsdp')
SMALL = 2**14
# The layers of a block whose outputs are split over tensor, and those that sum over what was split.
COLUMNS = re.compile(r'(^|/)stack/\d+/(.*/)?(query|key|value|up|gate)/(kernel|bias)$')
ROWS = re.compile(r'(^|/)stack/\d+/(.*/)?(out|down)/kernel$')

_FREE = PartitionSpec.UNCONSTRAINED

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
    return Mesh(_ordered(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def place(abstract_tree: Any, rules: Sequence[Rule], mesh: Mesh, spread: bool = False) -> Any:
    """The tree of NamedSharding for a tree of arrays or shapes.

    A rule is (regex, spec); the first whose regex is found in the leaf's path decides. The spec stands for
    the array's last dimensions, so one rule serves a kernel alone and the same kernel stacked along layers.
    Optimizer state and EMA carry the parameter's path within theirs and so follow its rule; leaves with fewer
    dimensions than the spec (factored statistics) go by the default, single elements are replicated. `spread`
    splits large ones over data as well, unless data reaches over several slices.
    """
    spread = spread and slices(mesh.devices.flat) == 1
    compiled = [(re.compile(pattern), pattern, tuple(spec)) for pattern, spec in rules]
    for _, pattern, spec in compiled:
        _check_axes(pattern, spec, mesh)

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name, shape = path_string(path), tuple(leaf.shape)
        if math.prod(shape) == 1:
            return NamedSharding(mesh, PartitionSpec())
        fitting = (
            _by_rule(name, shape, pattern, spec, mesh)
            for regex, pattern, spec in compiled
            if len(spec) <= len(shape) and regex.search(name)
        )
        chosen = next(fitting, None) or _by_default(name, shape, mesh)
        if spread and not any('data' in axes for axes in chosen):
            chosen = _and_over('data', chosen, name, shape, mesh)
        return NamedSharding(mesh, PartitionSpec(*chosen) if any(chosen) else PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, abstract_tree)


def placed(shapes: Any, rules: Sequence[Rule], mesh: Mesh, spread: bool = False) -> Any:
    """The same shapes, each with its place."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        place(shapes, rules, mesh, spread),
    )


def slices(devices: Iterable[jax.Device]) -> int:
    """The number of TPU slices that devices belong to; between slices the network is slow."""
    return len({getattr(device, 'slice_index', 0) for device in devices})


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension split over data and fsdp, the others whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_used(mesh: Mesh, params: Any, init: Callable[[jax.Array], Any]) -> None:
    """Refuse a mesh with an axis that would only repeat work: it splits no parameter, or no token.

    `init(key)` runs the networks.
    """
    split = {axis for leaf in jax.tree.leaves(params) for axes in leaf.sharding.spec for axis in _names(axes)}
    if mesh.shape['tensor'] > 1 and 'tensor' not in split:
        raise ValueError(
            f'mesh.tensor is {mesh.shape["tensor"]}, and no parameter is split over it: sizes do not divide, '
            'or the layers have names of their own; give networks.NAME.rules, or use the devices as fsdp'
        )
    if mesh.shape['sequence'] == 1:
        return
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        program = jax.make_jaxpr(init)(key)
    if not _splits(program.jaxpr, 'sequence'):
        raise ValueError(
            f'mesh.sequence is {mesh.shape["sequence"]}, and no network splits its tokens so; '
            'make it a number that divides the tokens of an image, or use the devices as fsdp'
        )


def _splits(jaxpr: core.Jaxpr, axis: str) -> bool:
    """Whether a traced program places some array along an axis."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'sharding_constraint':
            if any(axis in _names(axes) for axes in equation.params['sharding'].spec if axes is not _FREE):
                return True
        if any(_splits(inner, axis) for inner in core.jaxprs_in_params(equation.params)):
            return True
    return False


def check_batch(name: str, count: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Refuse a batch that does not divide over the mesh, each of its micro-batches."""
    parts = _batch_shards(mesh) * accumulate
    if count % parts:
        raise ValueError(
            f'{name} is {count}; it must be a multiple of {parts}: {_batch_shards(mesh)} shards of '
            f'the mesh{" x accumulate" if accumulate > 1 else ""}.'
        )


def local_rows(mesh: Mesh, batch: int, process: int | None = None) -> np.ndarray:
    """The rows of a global batch that a process (this one) has to provide, in their order.

    They need not be neighbours: on a torus of TPUs a host's chips are a square of the mesh.
    """
    shards = _batch_shards(mesh)
    if batch % shards:
        raise ValueError(
            f'a batch of {batch} does not divide over data x fsdp = {shards} shards; '
            f'use a multiple of {shards}'
        )
    process = jax.process_index() if process is None else process
    indices = batch_sharding(mesh).devices_indices_map((batch,))
    mine = {index[0].indices(batch) for device, index in indices.items() if device.process_index == process}
    return np.concatenate([np.arange(*bounds) for bounds in sorted(mine)])


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
) -> tuple[tuple[str, ...], ...]:
    full = ((),) * (len(shape) - len(spec)) + tuple(map(_names, spec))
    if full and full[0] and _has_layer_axis(name):
        raise ValueError(
            f'sharding rule {pattern!r} splits the layer axis of {name!r} {shape} over {spec[0]!r}; '
            'leave the layer axis out of the spec'
        )
    for size, axes in zip(shape, full, strict=True):
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            raise ValueError(
                f'sharding rule {pattern!r} splits {name!r} {shape}: dimension {size} does not divide over '
                f"axis '{' x '.join(axes)}' of {parts} devices; split another dimension or change the mesh"
            )
    return full


def _by_default(name: str, shape: tuple[int, ...], mesh: Mesh) -> tuple[tuple[str, ...], ...]:
    chosen = [()] * len(shape)
    split = -1 if COLUMNS.search(name) else -2 if ROWS.search(name) else None
    if split is not None and mesh.shape['tensor'] > 1 and shape[split] % mesh.shape['tensor'] == 0:
        chosen[split] = ('tensor',)
    return _and_over('fsdp', tuple(chosen), name, shape, mesh)


def _and_over(
    axis: str, chosen: tuple[tuple[str, ...], ...], name: str, shape: tuple[int, ...], mesh: Mesh
) -> tuple[tuple[str, ...], ...]:
    """A large array's dimensions split over one more axis of the mesh.

    That is the last one if it is whole, else the largest that is, else one that is split already.
    """
    layers = _has_layer_axis(name)
    if mesh.shape[axis] == 1 or math.prod(shape[layers:]) < SMALL:
        return chosen
    parts = [mesh.shape[axis] * math.prod(mesh.shape[other] for other in axes) for axes in chosen]
    dividing = [i for i in range(layers, len(shape)) if shape[i] % parts[i] == 0]
    if not dividing:
        return chosen
    best = min(dividing, key=lambda i: (bool(chosen[i]), i != len(shape) - 1, -shape[i]))
    return tuple((*axes, axis) if i == best else axes for i, axes in enumerate(chosen))


def _ordered(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices as the network between them wants: inner axes are neighbours, slices are along data."""
    count = slices(devices)
    if count == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if sizes[0] % count:
        raise ValueError(
            f'the {len(devices)} devices are {count} slices, and only the data axis can reach over the slow '
            f'network between them: mesh.data is {sizes[0]}; make it a multiple of {count}'
        )
    inner, outer = (sizes[0] // count, *sizes[1:]), (count, *(1 for _ in sizes[1:]))
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
