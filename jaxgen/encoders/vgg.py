"""VGG16's convolutions (Simonyan & Zisserman, 1409.1556): features of pictures at five sizes.

What is handed out are the activations before each pooling; the classifier above them is not here.
"""

# B batch, H height, W width, C channels

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.layers.convolution import Convolution

# Widths of the convolutions at each size.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Vgg(nn.Module):
    """Pictures [B, H, W, 3], normalised as it was trained with, to the features of each of `stages`."""

    stages: tuple[tuple[int, ...], ...] = STAGES

    @nn.compact
    def __call__(self, x_BHWC: Array) -> tuple[Array, ...]:
        found = []
        for stage, widths in enumerate(self.stages):
            if stage:
                x_BHWC = nn.max_pool(x_BHWC, (2, 2), (2, 2))
            for number, width in enumerate(widths):
                x_BHWC = jax.nn.relu(Convolution(width, name=f'convolution_{stage}_{number}')(x_BHWC))
            found.append(x_BHWC)
        return tuple(found)

    def blank(self, *_: Array) -> tuple[Array]:
        """What its parameters are made with: a picture of the least size."""
        side = 2 ** len(self.stages)
        return (jnp.zeros((1, side, side, 3)),)


def build() -> Vgg:
    """The network."""
    return Vgg()
