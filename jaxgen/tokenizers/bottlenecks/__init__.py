"""Bottlenecks: what a tokenizer's latents pass through, and the gradients that pass back.

A bottleneck is a module of its own between an encoder and a decoder: `bottleneck(z, sizes, keys)` gives what
the decoder is given, the codes and what they cost; `encode`, `lookup`, `embed`, `feedback` and `teacher` are
what a generator of codes asks of it. Scales are static: a tuple of grids, the last one the latents' own.
"""

# B batch, H height, W width, C channels, L tokens

from collections.abc import Callable, Mapping

import flax.struct
import jax.numpy as jnp
from jax import Array, lax

Sizes = tuple[tuple[int, int], ...]
Told = Callable[[int, Array], Array]  # of a scale's number and codes, what those after it are told instead
TINY = 1e-12


@flax.struct.dataclass
class Quantized:
    """What became of latents.

    maps: what is decoded, by scales where each is a picture of its own. codes: int32 [B, L], one a scale.
    loss: what is minimised besides, [B]. metrics: numbers to tell, [B] each. vectors, chosen: what was
    quantized, [N, C], and to which code, [N].
    """

    maps: tuple[Array, ...]
    codes: tuple[Array, ...]
    loss: Array
    metrics: Mapping[str, Array]
    vectors: Array | None = None
    chosen: Array | None = None


def straight_through(z: Array, quantized: Array) -> Array:
    """The quantized value, with the gradient of z (Bengio et al., 1308.3432)."""
    return z + lax.stop_gradient(quantized - z)


def rotated(z: Array, quantized: Array) -> Array:
    """The quantized value, with the gradient of the rotation and scaling that take z there.

    The rotation trick (Fifty et al., 2410.06424): angles between gradient and codebook vector stay those
    between gradient and z.
    """
    length, wanted = _length(z), _length(quantized)
    from_z, to_q = z / length, quantized / wanted
    between = (from_z + to_q) / _length(from_z + to_q)
    from_z, to_q, between, scale = lax.stop_gradient((from_z, to_q, between, wanted / length))
    reflected = z - 2 * between * jnp.sum(between * z, -1, keepdims=True)
    return scale * (reflected + 2 * to_q * jnp.sum(from_z * z, -1, keepdims=True))


GRADIENTS = {'straight_through': straight_through, 'rotation': rotated}


def unit(x: Array) -> Array:
    """Vectors of length one."""
    return x / _length(x)


def means(x: Array) -> Array:
    """Each example's mean."""
    return x.mean(axis=tuple(range(1, x.ndim)))


def grids(scales: tuple[int | tuple[int, int], ...]) -> Sizes:
    """Scales as rows and columns; one number is a square."""
    return tuple((scale, scale) if isinstance(scale, int) else tuple(scale) for scale in scales)


def _length(x: Array) -> Array:
    # Not the norm's own gradient, which is none at zero.
    return jnp.sqrt(jnp.sum(x * x, -1, keepdims=True) + TINY**2)


def as_it_is(k: int, codes: Array) -> Array:
    """Codes of scale k, told as they are."""
    return codes
