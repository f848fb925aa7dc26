"""Rotary position embedding: Su et al., "RoFormer", 2104.09864.

Pairs of channels (2i, 2i + 1) are rotated by position x base^(-2i/K), so that the product of a query and a
key depends on their distance alone. The axial 2-D form gives the first half of a head's channels to the row
and the second half to the column. Angles are made in float64 on the host and used in float32.
"""

# B batch, L tokens, N tokens of all scales, H heads, K width of a head

import jax
import jax.numpy as jnp
import numpy as np


def rope_1d(positions: np.ndarray, width: int, base: float = 10000.0) -> np.ndarray:
    """Angles [L, width / 2] of a sequence of positions."""
    if width % 2:
        raise ValueError(f'rotary embedding needs an even width, not {width}')
    frequencies = base ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    return (np.asarray(positions, np.float64)[:, None] * frequencies).astype(np.float32)


def rope_2d(grid: tuple[int, int], width: int, base: float = 10000.0) -> np.ndarray:
    """Angles [rows x columns, width / 2] of a grid in reading order."""
    return rope_scales((grid,), width, base)


def rope_scales(scales: tuple[tuple[int, int], ...], width: int, base: float = 10000.0) -> np.ndarray:
    """Angles [N, width / 2] of grids over one picture: each cell's where its middle is in the last grid."""
    if width % 4:
        raise ValueError(f'axial rotary embedding needs a width that 4 divides, not {width}')
    angles = []
    for rows, columns in scales:
        by_row, by_column = (
            rope_1d((np.arange(cells) + 0.5) * (finest / cells) - 0.5, width // 2, base)
            for cells, finest in zip((rows, columns), scales[-1])
        )
        angles.append(np.concatenate([np.repeat(by_row, columns, axis=0), np.tile(by_column, (rows, 1))], 1))
    return np.concatenate(angles)


def rotate(x_BLHK: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotates channel pairs by angles [L, K / 2] (or [B, L, K / 2])."""
    cosine, sine = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    pairs = x_BLHK.astype(jnp.float32).reshape(*x_BLHK.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([even * cosine - odd * sine, even * sine + odd * cosine], axis=-1)
    return rotated.reshape(x_BLHK.shape).astype(x_BLHK.dtype)
