"""Arrays filled where they belong: shard by shard, a stacked leaf layer by layer, cast as they are copied.

Published arrays are views on files, so nothing of them is in memory until it is copied into the buffer that
becomes the shard. A TPU's buffer is freed before the next is filled; a CPU device takes over an aligned one
as it is (nothing else refers to it afterwards), so loading needs the memory of the result and hardly more.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

Read = Callable[[], np.ndarray]
Index = tuple[slice, ...]

ALIGNMENT = 64  # bytes, for a CPU device to take a buffer over without a copy
STRIP = 16  # columns at a time, one line of the cache, make a transposed copy four times as fast


def filled(like: Any, layers: Sequence[Read], stacked: bool) -> Any:
    """A leaf of the shape, dtype and sharding of `like` (NumPy where it has none).

    `layers` read what it is made of: one array for each index of the leading axis if `stacked`, else one.
    """
    sharding = getattr(like, 'sharding', None)
    if sharding is None:
        return _buffer(like, layers, stacked, (slice(None),) * len(like.shape))
    devices_of: dict[tuple, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(like.shape).items():
        devices_of.setdefault(tuple((part.start, part.stop) for part in index), []).append(device)
    shards = []
    for bounds, devices in devices_of.items():
        buffer = _buffer(like, layers, stacked, tuple(slice(*bound) for bound in bounds))
        shards += [jax.device_put(buffer, device).block_until_ready() for device in devices]
    return jax.make_array_from_single_device_arrays(like.shape, sharding, shards)


def fetched(leaf: Any, layer: int | None) -> np.ndarray:
    """A leaf, or one layer of it, on the host. In a run of several processes all of them must ask."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf if layer is None else leaf[layer])
    # jax keeps the host's copy of an array as long as the array: better that of a short-lived one.
    part = jnp.copy(leaf) if layer is None else leaf[layer]
    if not part.is_fully_addressable:
        part = multihost_utils.process_allgather(part, tiled=True)
    return np.asarray(part)


def _buffer(like: Any, layers: Sequence[Read], stacked: bool, index: Index) -> np.ndarray:
    shape = tuple(len(range(*part.indices(size))) for part, size in zip(index, like.shape))
    buffer = _aligned(shape, np.dtype(like.dtype))
    if not stacked:
        _copy(buffer, layers[0]()[index])
        return buffer
    first = index[0].indices(len(layers))[0]
    for number in range(shape[0]):
        _copy(buffer[number, ...], layers[first + number]()[index[1:]])
    return buffer


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _copy(out: np.ndarray, source: np.ndarray) -> None:
    if source.ndim != 2 or source.strides[0] >= source.strides[1]:
        out[...] = source
        return
    for start in range(0, source.shape[1], STRIP):
        strip = slice(start, start + STRIP)
        out[:, strip] = source[:, strip]
