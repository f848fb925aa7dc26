"""Dropout (Hinton et al., 1207.0580) by keys of its own for every example, so that no batch changes a draw.

Layers are brought their keys by `per_layer`; without keys, as when pictures are drawn, nothing is left out.
"""

# B batch, L tokens, D width

import jax
import jax.numpy as jnp

from jaxgen import keys as random


def layer_keys(keys_B: jax.Array, depth: int) -> jax.Array:
    """Keys of every layer, [depth, B]."""
    return jax.vmap(lambda layer: random.split_each(keys_B, layer))(jnp.arange(depth))


def dropped(x_BLD: jax.Array, rate: float, keys_B: jax.Array | None, purpose: str) -> jax.Array:
    """With a share of the values zero and the others larger by as much, where there are keys to draw by."""
    if not rate or keys_B is None:
        return x_BLD
    chance = random.draw(jax.random.uniform, random.fold(keys_B, purpose), x_BLD.shape[1:])
    return jnp.where(chance >= rate, x_BLD / (1 - rate), 0).astype(x_BLD.dtype)
