"""Random keys: every draw comes from a key folded with its purpose, every example has a key of its own.

A draw then depends on (seed, step, purpose, example) alone: neither the batch's size, nor its
sharding, nor the order in which a program happens to draw changes it.
"""

import zlib
from collections.abc import Callable

import jax
from jax import Array


def fold(key: Array, purpose: str) -> Array:
    """The key, or each of an array of keys, for one purpose."""
    number = zlib.crc32(purpose.encode())
    if key.ndim:
        return jax.vmap(lambda one: jax.random.fold_in(one, number))(key)
    return jax.random.fold_in(key, number)


def split_examples(key: Array, indices: Array) -> Array:
    """One key for each example index."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def split_each(keys: Array, index: Array) -> Array:
    """Every key of an array folded with one index, such as a step."""
    return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)


def draw(sampler: Callable[..., Array], keys: Array, shape: tuple[int, ...] = ()) -> Array:
    """`sampler(key, shape)` for every key, stacked: `draw(jax.random.normal, keys, (8, 8, 3))`."""
    return jax.vmap(lambda key: sampler(key, shape))(keys)
