"""How a token is chosen from its logits: guidance, temperature, the likeliest few, a draw.

Guidance of logits is Muse's (arXiv:2301.00704) in the house's measure, 1 being none; the nucleus is that of
arXiv:1904.09751. All settings are traced; sorting is left out where nothing asks for it. A draw is a maximum
of logits and Gumbel noise of each image's own key.
"""

# B batch, L tokens, V codes

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random


def guided(logits_BLV: Array, scale: Array) -> Array:
    """From logits with the condition, and then without: null + scale (conditional - null)."""
    positive, negative = jnp.split(logits_BLV, 2)
    return negative + scale * (positive - negative)


def likeliest(logits_BLV: Array, top_k: Array, top_p: Array) -> Array:
    """The logits of the `top_k` codes, and of those the fewest that make up `top_p`; else minus infinity.

    0 leaves all of them in. The likeliest code always stays.
    """

    def cut(logits_BLV: Array) -> Array:
        falling = jnp.flip(jnp.sort(logits_BLV, axis=-1), axis=-1)
        codes = falling.shape[-1]
        rank = jnp.clip(jnp.where(top_k > 0, top_k, codes), 1, codes) - 1
        least = jnp.take_along_axis(falling, jnp.full((*falling.shape[:-1], 1), rank), axis=-1)
        chance = jax.nn.softmax(jnp.where(falling >= least, falling, -jnp.inf), axis=-1)
        before = jnp.cumsum(chance, axis=-1) - chance
        inside = (before < jnp.where(top_p > 0, top_p, 2.0)) & (falling >= least)
        inside = inside.at[..., 0].set(True)
        least = jnp.min(jnp.where(inside, falling, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(logits_BLV >= least, logits_BLV, -jnp.inf)

    return jax.lax.cond((top_k > 0) | (top_p > 0), cut, lambda logits: logits, logits_BLV)


def gumbel(keys_B: Array, shape: tuple[int, ...]) -> Array:
    """Standard Gumbel noise of each key."""
    return random.draw(jax.random.gumbel, keys_B, shape)


def drawn(logits_BLV: Array, keys_B: Array) -> Array:
    """Codes [B, L] drawn by their logits."""
    return jnp.argmax(logits_BLV + gumbel(keys_B, logits_BLV.shape[1:]), axis=-1).astype(jnp.int32)
