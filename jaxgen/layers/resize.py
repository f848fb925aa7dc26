"""Resizing that equals torch's `interpolate(align_corners=False)`, which jax.image.resize does not.

Bicubic is Keys' kernel (1981) with a = -0.75 without antialiasing and a = -0.5 with it, as torch has them;
without antialiasing taps beyond the border repeat it, with it the window is cut off and renormalised. Area is
the mean of the input pixels that an output pixel touches. Every axis is one small matrix made in float64 on
the host.
"""

# I input length, O output length

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

METHODS = ('bilinear', 'bicubic', 'area')


def resize(
    x: jax.Array,
    size: tuple[int, int],
    method: str = 'bicubic',
    *,
    antialias: bool = False,
    offset: float = 0.0,
) -> jax.Array:
    """[..., height, width, channels] -> [..., *size, channels], computed in float32.

    `offset` reads the input as if the output were larger by it, as DINO's code does to its position table.
    """
    if method not in METHODS:
        raise ValueError(f'resize method {method!r} is unknown; choose from {METHODS}')
    if method == 'area' and (antialias or offset):
        raise ValueError('resize by area has neither antialias nor offset; leave them out')
    if x.shape[-3:-1] == tuple(size) and not offset:
        return x
    make = _area if method == 'area' else _antialiased if antialias else _plain
    rows, columns = (
        make(length, out, method, length / (out + offset)) for length, out in zip(x.shape[-3:-1], size)
    )
    y = x.astype(jnp.float32)
    y = jnp.einsum('oi,...iwc->...owc', rows, y, precision='highest')
    y = jnp.einsum('oi,...hic->...hoc', columns, y, precision='highest')
    return y.astype(x.dtype)


def _cubic(a: float) -> Callable[[np.ndarray], np.ndarray]:
    def kernel(x: np.ndarray) -> np.ndarray:
        x = np.abs(x)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    return kernel


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _plain(length: int, out: int, method: str, scale: float) -> np.ndarray:
    """The matrix [O, I] that samples a kernel one input pixel wide, the border repeated."""
    kernel, reach = (_cubic(-0.75), 2) if method == 'bicubic' else (_triangle, 1)
    centres = (np.arange(out) + 0.5) * scale - 0.5
    matrix = np.zeros((out, length))
    for tap in range(1 - reach, 1 + reach):
        position = np.floor(centres) + tap
        weight = kernel(centres - position)
        np.add.at(matrix, (np.arange(out), np.clip(position, 0, length - 1).astype(int)), weight)
    return matrix.astype(np.float32)


def _antialiased(length: int, out: int, method: str, scale: float) -> np.ndarray:
    """The matrix [O, I] of a kernel no narrower than an output pixel, cut off at the border."""
    kernel, reach = (_cubic(-0.5), 2) if method == 'bicubic' else (_triangle, 1)
    stretch = max(scale, 1.0)
    centres = (np.arange(out) + 0.5) * scale
    first = np.maximum((centres - reach * stretch + 0.5).astype(int), 0)
    last = np.minimum((centres + reach * stretch + 0.5).astype(int), length)
    pixels = np.arange(length)
    weight = kernel((pixels + 0.5 - centres[:, None]) / stretch)
    weight = np.where((pixels >= first[:, None]) & (pixels < last[:, None]), weight, 0.0)
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def _area(length: int, out: int, method: str, scale: float) -> np.ndarray:
    """The matrix [O, I] of the mean of all input pixels that an output pixel touches, however little."""
    first, last = np.arange(out) * length // out, -(np.arange(1, out + 1) * length // -out)
    pixels = np.arange(length)
    touched = (pixels >= first[:, None]) & (pixels < last[:, None])
    return (touched / touched.sum(1, keepdims=True)).astype(np.float32)
