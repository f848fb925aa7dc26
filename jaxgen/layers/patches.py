"""Images <-> sequences of flattened patches.

A patch is flattened in the order (row, column, channel), tokens in reading order. A published convolution
kernel [out, channel, row, column] is therefore the matrix [row x column x channel, out] here.
"""

# B batch, L tokens, D width

import flax.linen as nn
import jax

from jaxgen.layers.linear import Linear


def grid_of(x_BHWC: jax.Array, patch: int) -> tuple[int, int]:
    """Rows and columns of patches in an image."""
    height, width = x_BHWC.shape[1:3]
    if height % patch or width % patch:
        raise ValueError(
            f'an input of {height}x{width} does not divide into patches of {patch}; '
            'choose another size or patch'
        )
    return height // patch, width // patch


def patchify(x_BHWC: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] -> [B, L, patch x patch x C]."""
    rows, columns = grid_of(x_BHWC, patch)
    batch, channels = x_BHWC.shape[0], x_BHWC.shape[-1]
    x = x_BHWC.reshape(batch, rows, patch, columns, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(x_BLD: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """[B, L, patch x patch x C] -> [B, H, W, C], the inverse of patchify."""
    rows, columns = grid
    batch, tokens, width = x_BLD.shape
    if tokens != rows * columns:
        raise ValueError(f'{tokens} tokens are not a grid of {rows}x{columns}')
    x = x_BLD.reshape(batch, rows, columns, patch, patch, width // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * patch, columns * patch, width // patch**2)


class PatchEmbed(nn.Module):
    """A Linear over flattened patches."""

    features: int
    patch: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return Linear(self.features, name='projection')(patchify(x_BHWC, self.patch))
