"""Finite scalar quantization (Mentzer et al., "VQ-VAE Made Simple", 2309.15505).

Each channel is bounded and rounded to one of a few levels; the codebook is their product, and is not learned.
A code is the number that its levels are the digits of, the first channel's being the lowest.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.config import Size
from jaxgen.tokenizers.bottlenecks import grids
from jaxgen.tokenizers.bottlenecks.quantizer import Quantizer

MARGIN = 1e-3  # so that the outermost levels are reached


class FiniteScalar(Quantizer):
    """`levels` of each channel."""

    levels: tuple[int, ...] = (8, 8, 8, 6, 5)

    channels = property(lambda self: len(self.levels))
    vocabulary = property(lambda self: int(np.prod(self.levels)))

    def begin(self, z: Array) -> Array:
        """Bounded latents, a level wide 1 / (levels // 2), so that all of them lie in [-1, 1]."""
        levels = np.asarray(self.levels)
        half = (levels - 1) * (1 + MARGIN) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0)
        bounded = jnp.tanh(z + np.arctanh(offset / half)) * half - offset
        return bounded / (levels // 2)

    def chosen(self, z: Array) -> Array:
        """The number of the nearest levels."""
        middle = np.asarray(self.levels) // 2
        digits = jnp.round(z * middle).astype(jnp.int32) + middle
        return jnp.sum(digits * self._places(), -1).astype(jnp.int32)

    def lookup(self, codes: Array) -> Array:
        """The levels that a number stands for."""
        levels = np.asarray(self.levels)
        digits = codes[..., None] // self._places() % levels
        return (digits - levels // 2) / (levels // 2).astype(np.float32)

    def _places(self) -> np.ndarray:
        return np.cumprod((1, *self.levels[:-1])).astype(np.int32)


def build(
    levels: tuple[Size, ...] = (8, 8, 8, 6, 5),
    scales: tuple[Size | tuple[Size, Size], ...] = (),
    gradient: Literal['straight_through', 'rotation'] = 'straight_through',
) -> FiniteScalar:
    """The bottleneck; by default with 15,360 codes, the paper's for about 2^14."""
    if not levels or min(levels) < 2 or np.prod(levels, dtype=float) >= 2**31:
        raise ValueError(
            f'bottleneck.levels is {tuple(levels)}; give at least 2 a channel, and fewer than 2^31 codes.'
        )
    return FiniteScalar(grids(scales), gradient, tuple(levels))
