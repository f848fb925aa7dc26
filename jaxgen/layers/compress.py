"""Key-value token compression: Chen et al., "PixArt-Sigma", 2403.04692, section 3.3.

Neighbouring keys and values say much the same in a large image, so every square of ratio x ratio of them
becomes one: by a depthwise convolution that starts as the mean ('conv', the published choice), the mean
('ave') or the first token ('uniform'). Queries are left whole.
"""

# B batch, L tokens, D width, R rows and C columns of squares, I row and J column within a square

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.layers.modulation import layer_norm

SAMPLINGS = ('conv', 'ave', 'uniform')


class Compress(nn.Module):
    """Each of several [B, rows x columns, D] -> [B, rows // ratio x columns // ratio, D]; same weights."""

    ratio: int
    sampling: str = 'conv'

    @nn.compact
    def __call__(self, tokens: tuple[jax.Array, ...], grid: tuple[int, int]) -> tuple[jax.Array, ...]:
        if self.sampling not in SAMPLINGS:
            raise ValueError(f'compression sampling {self.sampling!r} is unknown; choose from {SAMPLINGS}')
        squares = [_squares(x, grid, self.ratio) for x in tokens]
        if self.sampling == 'uniform':
            coarse = [x[:, :, 0, :, 0] for x in squares]
        elif self.sampling == 'ave':
            coarse = [x.mean((2, 4)) for x in squares]
        else:
            width, dtype = tokens[0].shape[-1], tokens[0].dtype
            mean = nn.initializers.constant(1.0 / self.ratio**2)
            kernel_IJD = self.param('kernel', mean, (self.ratio, self.ratio, width)).astype(dtype)
            bias_D = self.param('bias', nn.initializers.zeros_init(), (width,)).astype(dtype)
            norm = layer_norm(affine=True, epsilon=1e-5, dtype=dtype, name='norm')
            coarse = [norm(jnp.einsum('bricjd,ijd->brcd', x, kernel_IJD) + bias_D) for x in squares]
        return tuple(x.reshape(x.shape[0], -1, x.shape[-1]) for x in coarse)


def _squares(x_BLD: jax.Array, grid: tuple[int, int], ratio: int) -> jax.Array:
    rows, columns = grid[0] // ratio, grid[1] // ratio
    if not rows or not columns:
        raise ValueError(f'a grid of {grid[0]}x{grid[1]} tokens is too small to compress by {ratio}')
    batch, _, width = x_BLD.shape
    # As a strided convolution does, leave out what does not fill a square.
    x = x_BLD.reshape(batch, *grid, width)[:, : rows * ratio, : columns * ratio]
    return x.reshape(batch, rows, ratio, columns, ratio, width)
