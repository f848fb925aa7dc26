"""LPIPS (Zhang et al., "The Unreasonable Effectiveness of Deep Features", 1801.03924), version 0.1 by VGG16.

Features of both pictures are brought to length one at every place; their squared differences, each channel
weighed by a learned number, are averaged over places and added over sizes. Without its published weights the
number means nothing.
"""

# B batch, H height, W width, C channels

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.encoders.vgg import STAGES, Vgg

SHIFT = np.asarray((-0.030, -0.088, -0.188), np.float32)
SCALE = np.asarray((0.458, 0.448, 0.450), np.float32)
TINY = 1e-10


class Lpips(nn.Module):
    """Distances [B] of pictures [B, H, W, 3] in [-1, 1]."""

    stages: tuple[tuple[int, ...], ...] = STAGES

    @nn.compact
    def __call__(self, x_BHWC: Array, y_BHWC: Array) -> Array:
        network, distance = Vgg(self.stages, name='vgg'), jnp.zeros(len(x_BHWC))
        both = jnp.concatenate([x_BHWC, y_BHWC])
        for stage, features in enumerate(network((both - SHIFT) / SCALE)):
            squares = jnp.sum(features**2, -1, keepdims=True)
            # Features are all zero where nothing is: there the length itself would have no gradient.
            length = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
            x, y = jnp.split(features / (length + TINY), 2)
            weights = self.param(f'weights_{stage}', nn.initializers.ones, (features.shape[-1],))
            distance = distance + jnp.mean(((x - y) ** 2) @ weights, axis=(1, 2))
        return distance

    def blank(self, *_: Array) -> tuple[Array, Array]:
        """What its parameters are made with: two pictures of the least size."""
        picture = jnp.zeros((1, 2 ** len(self.stages), 2 ** len(self.stages), 3))
        return picture, picture


def build() -> Lpips:
    """The network."""
    return Lpips()
