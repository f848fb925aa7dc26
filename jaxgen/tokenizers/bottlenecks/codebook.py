"""A table of code vectors, which vector is nearest, and k-means for where to begin (Lloyd 1982).

Nearest by euclidean distance; by cosine, that is by direction alone; or on the sphere, where both sides are
brought to length one and stay so (ViT-VQGAN, Yu et al., 2110.04627).
"""

# V vocabulary, C channels, N vectors

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.tokenizers.bottlenecks import unit

Distance = Literal['euclidean', 'cosine', 'sphere']


def _uniform(key: Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> Array:
    """Within one vocabulary's share of zero, as published code draws it."""
    return jax.random.uniform(key, shape, dtype, -1 / shape[0], 1 / shape[0])


class Codebook(nn.Module):
    """`codes` vectors of `channels`."""

    codes: int
    channels: int
    distance: Distance = 'euclidean'

    def setup(self) -> None:
        self.table = self.param('table', _uniform, (self.codes, self.channels))

    def vectors(self) -> Array:
        """All of them, as they are used."""
        table = self.table.astype(jnp.float32)
        return unit(table) if self.distance == 'sphere' else table

    def lookup(self, codes: Array) -> Array:
        """The vectors of codes."""
        return jnp.take(self.vectors(), codes, axis=0)

    def nearest(self, z: Array) -> Array:
        """The code of each vector [..., C]."""
        return nearest(z, self.vectors(), self.distance)


def nearest(z: Array, table_VC: Array, distance: Distance) -> Array:
    """The number of the row that is nearest to each vector [..., C], the first one of equals."""
    if distance != 'euclidean':
        z, table_VC = unit(z), unit(table_VC)
    products = jnp.einsum('...c,vc->...v', z, table_VC, precision='highest')
    if distance == 'euclidean':
        products = products - 0.5 * jnp.sum(table_VC**2, -1)
    return jnp.argmax(products, -1).astype(jnp.int32)


def k_means(vectors_NC: Array, count: int, distance: Distance, key: Array, rounds: int = 10) -> Array:
    """`count` centres of vectors, from as many of them at random; a centre that nothing is near stays."""
    vectors = unit(vectors_NC) if distance == 'sphere' else vectors_NC
    rows = jax.random.choice(key, len(vectors), (count,), replace=len(vectors) < count)

    def lloyd(_: int, centres: Array) -> Array:
        chosen = nearest(vectors, centres, distance)
        counts, sums = gathered(vectors, chosen, count)
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], centres)

    return jax.lax.fori_loop(0, rounds, lloyd, vectors[rows])


def gathered(vectors_NC: Array, chosen_N: Array, count: int) -> tuple[Array, Array]:
    """How many vectors each code was chosen for, and their sum."""
    counts = jax.ops.segment_sum(jnp.ones(len(chosen_N)), chosen_N, count)
    return counts, jax.ops.segment_sum(vectors_NC, chosen_N, count)
