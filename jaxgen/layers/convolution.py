"""3 x 3 convolutions of maps, whole or in strips of rows.

A strip needs only the rows around it, so whatever pointwise function comes before (a norm, an activation) and
the up-sampling are computed for one strip at a time and never exist for a whole map: beside the convolution's
input and output there is nothing large. Either way the same numbers come out.
"""

# B batch, H height, W width, C channels

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')  # that of the published code


class Convolution(nn.Module):
    """`resample` 'down' halves the map, padding below and right alone; 'up' first doubles it, by nearest.

    `before` is done to every pixel first, and the padding stays zero. Computes in the dtype of x. More than
    one of `strips` has no use when sharded along rows.
    """

    features: int
    resample: str = 'none'
    strips: int = 1

    @nn.compact
    def __call__(
        self, x_BHWC: jax.Array, before: Callable[[jax.Array], jax.Array] = lambda x: x
    ) -> jax.Array:
        shape = (3, 3, x_BHWC.shape[-1], self.features)
        kernel = self.param('kernel', _init, shape).astype(x_BHWC.dtype)
        bias = self.param('bias', nn.initializers.zeros, (self.features,)).astype(x_BHWC.dtype)
        stride, left = (2, 0) if self.resample == 'down' else (1, 1)

        def convolve(x_BHWC: jax.Array, rows: tuple[int, int]) -> jax.Array:
            y = lax.conv_general_dilated(
                x_BHWC,
                kernel,
                (stride, stride),
                (rows, (left, 1)),
                dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            )
            return y + bias

        batch, height, width, _ = x_BHWC.shape
        if self.resample == 'up':
            height, width = 2 * height, 2 * width
        if self.strips == 1:
            return convolve(_doubled(before(x_BHWC), self.resample), (left, 1))

        def strip(start: jax.Array, count: int) -> jax.Array:
            rows = start * stride - left + jnp.arange((count - 1) * stride + 3)
            inside = (rows >= 0) & (rows < height)
            source = jnp.clip(rows // 2 if self.resample == 'up' else rows, 0, x_BHWC.shape[1] - 1)
            x = before(jnp.take(x_BHWC, source, axis=1))
            if self.resample == 'up':
                x = jnp.repeat(x, 2, axis=2)
            return convolve(jnp.where(inside[:, None, None], x, 0), (0, 0))

        shape = (batch, height // stride, width // stride, self.features)
        return _in_strips(strip, shape, self.strips, x_BHWC[0, 0, 0, 0])


def _in_strips(
    strip: Callable[[jax.Array, int], jax.Array], shape: tuple[int, ...], strips: int, any_value: jax.Array
) -> jax.Array:
    """A map put together of `strip(first row, rows)`; where they do not divide, the last overlaps."""
    count = -(-shape[1] // strips)

    def put(number: jax.Array, whole: jax.Array) -> jax.Array:
        start = jnp.minimum(number * count, shape[1] - count)
        return lax.dynamic_update_slice_in_dim(whole, strip(start, count), start, 1)

    # All of it is overwritten. Zeros would be one constant for all maps of a shape: made before it is needed,
    # copied for each map, kept to the end.
    return lax.fori_loop(0, -(-shape[1] // count), put, jnp.full(shape, any_value))


def _doubled(x_BHWC: jax.Array, resample: str) -> jax.Array:
    return jnp.repeat(jnp.repeat(x_BHWC, 2, 1), 2, 2) if resample == 'up' else x_BHWC
