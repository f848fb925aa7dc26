"""A small convolutional classifier of the shapes, for the Fréchet distance in its features.

Inception's features (Heusel et al., 1706.08500) say little of pictures of 32 pixels; those before the last
layer of a network that tells the labels of shapes apart say what matters there. A distance means something
by the same features only, so the parameters that `configs/classifier_shapes.py` trains are kept beside it.
"""

# B batch, H height, W width, C channels, D features, K labels

import functools
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgen.config import Count
from jaxgen.layers.linear import Initializer
from jaxgen.layers.resize import resize

SIDE = 32  # of the pictures it reads; others are resized
WIDTHS = (16, 32, 48, 48)  # of the convolutions, each but the first halving the side
FEATURES = 64
LAYOUT = 'NHWC', 'HWIO', 'NHWC'
KEPT = Path(__file__).with_suffix('.npz')


class ShapesClassifier(nn.Module):
    """Pictures in [-1, 1] to logits [B, K] and features [B, D]; `trained` begins with what is kept."""

    labels: int
    trained: bool

    @nn.compact
    def __call__(self, x_BHWC: Array) -> tuple[Array, Array]:
        x = x_BHWC if x_BHWC.shape[1:3] == (SIDE, SIDE) else resize(x_BHWC, (SIDE, SIDE), 'area')
        for number, width in enumerate(WIDTHS):
            kernel = self._drawn(f'kernel_{number}', nn.initializers.he_normal(), (3, 3, x.shape[-1], width))
            # Not with zeros: they would tell where in the picture something is, and so what it may be.
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
            stride = (2, 2) if number else (1, 1)
            x = lax.conv_general_dilated(x, kernel, stride, 'VALID', dimension_numbers=LAYOUT)
            x = nn.relu(x + self._drawn(f'bias_{number}', nn.initializers.zeros, (width,)))
        x = x.max((1, 2))  # a shape is a small part of a picture
        kernel = self._drawn('features', nn.initializers.he_normal(), (x.shape[-1], FEATURES))
        features = nn.relu(x @ kernel)
        return features @ self._drawn('labels', nn.initializers.zeros, (FEATURES, self.labels)), features

    def _drawn(self, name: str, init: Initializer, shape: tuple[int, ...]) -> Array:
        if self.trained:
            return self.param(name, lambda *_: jnp.asarray(kept()[name], jnp.float32), shape)
        return self.param(name, init, shape)

    def blank(self, *_: Array) -> tuple[Array]:
        """What its parameters are made with."""
        return (jnp.zeros((1, SIDE, SIDE, 3)),)


@functools.cache
def kept() -> Mapping[str, np.ndarray]:
    """The parameters that ship."""
    with np.load(KEPT) as arrays:
        return dict(arrays)


def build(labels: Count = 32, trained: bool = True) -> ShapesClassifier:
    """The classifier of so many labels; `trained` is with the parameters that ship, which are of 32."""
    if trained and labels != kept()['labels'].shape[-1]:
        raise ValueError(
            f'labels is {labels}, and the classifier that ships knows {kept()["labels"].shape[-1]}; leave it '
            'out, or train your own with trained=False.'
        )
    return ShapesClassifier(labels, trained)
