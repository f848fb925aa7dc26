"""How near pictures are to others: PSNR, SSIM (Wang et al., 2004) with its window of 11 pixels, and for sets
of them the Fréchet distance of normal distributions of their features (Heusel et al., 1706.08500).
"""

# B batch, H height, W width, C channels, D features

from collections.abc import Mapping

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


def moments(features_BD: Array) -> dict[str, tuple[Array, Array]]:
    """Sums of features and of their products in pairs, each with its weight."""
    features, count = features_BD.astype(jnp.float32), jnp.float32(len(features_BD))
    products = jnp.einsum('bd,be->de', features, features, precision='highest')
    return {'mean': (features.sum(0), count), 'products': (products, count)}


def frechet(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    """The distance of two sets of pictures by the means of what `moments` gives.

    |m - n|^2 + tr(A + B - 2 (A B)^1/2); the last trace is that of (A^1/2 B A^1/2)^1/2.
    """

    def spread(of: Mapping[str, np.ndarray]) -> np.ndarray:
        mean = np.asarray(of['mean'], np.float64)
        return np.asarray(of['products'], np.float64) - np.outer(mean, mean)

    ours, theirs = spread(one), spread(other)
    values, vectors = np.linalg.eigh(ours)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    common = np.sqrt(np.clip(np.linalg.eigvalsh(root @ theirs @ root), 0, None)).sum()
    apart = np.square(np.asarray(one['mean'], np.float64) - other['mean']).sum()
    return float(max(0.0, apart + np.trace(ours) + np.trace(theirs) - 2 * common))


def _windows(side: int) -> np.ndarray:
    """The matrix [places, side] of all whole windows along a side, or of one for a smaller picture."""
    width = min(WINDOW, side)
    weights = np.exp(-0.5 * ((np.arange(width) - (width - 1) / 2) / DEVIATION) ** 2)
    matrix = np.zeros((side - width + 1, side))
    for place in range(len(matrix)):
        matrix[place, place : place + width] = weights / weights.sum()
    return matrix.astype(np.float32)
