"""How near pictures are to others: PSNR, and SSIM (Wang et al., 2004) with its window of 11 pixels."""

# B batch, H height, W width, C channels

import jax.numpy as jnp
import numpy as np
from jax import Array

WINDOW, DEVIATION = 11, 1.5
STEADY = 0.01**2, 0.03**2  # what keeps quotients of nothing by nothing near one, for pictures in [0, 1]


def psnr(x_BHWC: Array, y_BHWC: Array) -> Array:
    """Peak signal to noise in decibels, [B], of pictures in [0, 1]."""
    error = jnp.mean((x_BHWC - y_BHWC) ** 2, axis=(1, 2, 3))
    return -10 * jnp.log10(jnp.maximum(error, 1e-10))


def ssim(x_BHWC: Array, y_BHWC: Array) -> Array:
    """Structural similarity, [B], of pictures in [0, 1]: the mean over channels and all whole windows."""
    rows, columns = (_windows(side) for side in x_BHWC.shape[1:3])

    def local(a_BHWC: Array) -> Array:
        a = jnp.einsum('oh,bhwc->bowc', rows, a_BHWC, precision='highest')
        return jnp.einsum('ow,bhwc->bhoc', columns, a, precision='highest')

    x, y = local(x_BHWC), local(y_BHWC)
    x_square, y_square = local(x_BHWC**2) - x**2, local(y_BHWC**2) - y**2
    together = local(x_BHWC * y_BHWC) - x * y
    mean_term = (2 * x * y + STEADY[0]) / (x**2 + y**2 + STEADY[0])
    spread_term = (2 * together + STEADY[1]) / (x_square + y_square + STEADY[1])
    return jnp.mean(mean_term * spread_term, axis=(1, 2, 3))


def _windows(side: int) -> np.ndarray:
    """The matrix [places, side] of all whole windows along a side, or of one for a smaller picture."""
    width = min(WINDOW, side)
    weights = np.exp(-0.5 * ((np.arange(width) - (width - 1) / 2) / DEVIATION) ** 2)
    matrix = np.zeros((side - width + 1, side))
    for place in range(len(matrix)):
        matrix[place, place : place + width] = weights / weights.sum()
    return matrix.astype(np.float32)
