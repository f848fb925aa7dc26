"""Embeddings of time, labels, sizes and positions.

Sinusoids of Vaswani et al., 1706.03762, in the order (cosines, sines) for times, as GLIDE and DiT have it,
and (sines, cosines) for positions, as MAE has it: the first half of the width is the column's, the second the
row's. Micro-conditioning on sizes is SDXL's, 2307.01952. All of this is float32 at the highest matmul
precision.
"""

# B batch, L tokens, D width, S numbers that make up a size

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.layers.linear import Initializer, Linear

SINUSOIDS = 256


def sinusoids(t_B: jax.Array, width: int, max_period: float = 10000.0, frequency_shift: int = 0) -> jax.Array:
    """[...] -> [..., width], cosines first, float32.

    Frequencies fall from 1 towards 1 / max_period, which with a `frequency_shift` of 1 is the last of them.
    """
    if width % 2:
        raise ValueError(f'sinusoids need an even width, not {width}')
    half = width // 2
    last = half - frequency_shift
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / last)
    angles = t_B.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Sinusoids through a two-layer SiLU MLP: [...] -> [..., features], float32."""

    features: int
    frequency_shift: int = 0

    @nn.compact
    def __call__(self, t_B: jax.Array) -> jax.Array:
        init = nn.initializers.normal(0.02)
        hidden = Linear(self.features, kernel_init=init, precision='highest', name='up')(
            sinusoids(t_B, SINUSOIDS, frequency_shift=self.frequency_shift)
        )
        return Linear(self.features, kernel_init=init, precision='highest', name='down')(jax.nn.silu(hidden))


class SizeEmbedding(nn.Module):
    """Each of S numbers embedded as a time is, side by side: [B, S] -> [B, S x features]."""

    features: int

    @nn.compact
    def __call__(self, size_BS: jax.Array) -> jax.Array:
        embedded = TimeEmbedding(self.features, name='mlp')(size_BS)
        return embedded.reshape(size_BS.shape[0], -1)


class LabelEmbedding(nn.Module):
    """A table of class vectors whose last row stands for no class."""

    classes: int
    features: int
    table_init: Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, label_B: jax.Array, drop_B: jax.Array) -> jax.Array:
        shape = (self.classes + 1, self.features)
        table = self.param('table', self.table_init, shape)
        # Out of range gives NaN, which is seen; clipping would train on the null row unnoticed.
        return jnp.take(table, jnp.where(drop_B, self.classes, label_B), axis=0, mode='fill')


def _axis_sinusoids(positions: np.ndarray, width: int) -> np.ndarray:
    frequencies = 10000.0 ** -(np.arange(width // 2, dtype=np.float64) / (width / 2))
    angles = positions[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def position_table(
    grid: tuple[int, int], width: int, *, base_size: int | None = None, interpolation: float = 1.0
) -> jax.Array:
    """Fixed 2-D sin-cos positions [rows x columns, width], float32.

    With `base_size` each axis, whatever its length, spans base_size / interpolation units, as PixArt trains
    its aspect buckets; without it the unit is one token over `interpolation`.
    """
    if width % 4:
        raise ValueError(f'2-D positions need a width that 4 divides, not {width}')
    rows, columns = grid

    def axis(length: int) -> np.ndarray:
        unit = 1.0 if base_size is None else base_size / length
        return _axis_sinusoids(np.arange(length, dtype=np.float64) * unit / interpolation, width // 2)

    # Two short tables and a broadcast: the whole table would be a constant of many megabytes in the program.
    by_row = jnp.broadcast_to(axis(rows)[:, None], (rows, columns, width // 2))
    by_column = jnp.broadcast_to(axis(columns)[None], (rows, columns, width // 2))
    return jnp.concatenate([by_column, by_row], axis=-1).reshape(rows * columns, width)
