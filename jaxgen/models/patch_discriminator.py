"""The patch discriminator of pix2pix (Isola et al., 1611.07004), VQGAN's: real or made, place by place.

Convolutions of 4 x 4, halving the picture `depth` times and twice not, so that each score sees some of it.
Groups are normalised instead of batches, so that no picture's score is another's affair.
"""

# B batch, H height, W width, C channels

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgen.config import Depth, Size
from jaxgen.layers.groupnorm import GroupNorm

_init = nn.initializers.normal(0.02)


class Layer(nn.Module):
    """A convolution of 4 x 4, padded by one on each side."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        kernel = self.param('kernel', _init, (4, 4, x_BHWC.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        strides, padding = (self.stride,) * 2, ((1, 1), (1, 1))
        numbers = ('NHWC', 'HWIO', 'NHWC')
        y = lax.conv_general_dilated(x_BHWC, kernel, strides, padding, dimension_numbers=numbers)
        return y + bias


class PatchDiscriminator(nn.Module):
    """Pictures [B, H, W, 3] in [-1, 1] to scores [B, h, w]."""

    width: int
    depth: int
    groups: int

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        x = Layer(self.width, 2, name='in')(x_BHWC)
        for number in range(1, self.depth + 1):
            features = self.width * min(2**number, 8)
            x = jax.nn.leaky_relu(x, 0.2)
            x = Layer(features, 2 if number < self.depth else 1, name=f'layer_{number}')(x)
            x = GroupNorm(self.groups, name=f'norm_{number}')(x)(x)
        return Layer(1, 1, name='out')(jax.nn.leaky_relu(x, 0.2))[..., 0]

    def blank(self, latents: Any, t: Any, cond: Any) -> tuple[Array]:
        """What its parameters are made with: a picture of the least size."""
        return (jnp.zeros((1, 2 ** (self.depth + 2), 2 ** (self.depth + 2), 3)),)


def build(
    resolution: Size = 256, width: Size = 64, depth: Depth = 3, groups: Size = 32
) -> PatchDiscriminator:
    """The network; a score sees 70 x 70 pixels at the default depth."""
    if resolution < 2 ** (depth + 2):
        raise ValueError(
            f'depth {depth} leaves no patch of pictures of {resolution} pixels; it needs {2 ** (depth + 2)}.'
        )
    if 2 * width % groups:
        raise ValueError(f'width {width} does not make channels that {groups} groups divide; change either.')
    return PatchDiscriminator(width, depth, groups)
