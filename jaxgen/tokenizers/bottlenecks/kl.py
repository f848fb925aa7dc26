"""A Gaussian for every latent, held near the standard one (Kingma & Welling, 1312.6114); it has no codes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.config import NonNegative, Size
from jaxgen.keys import draw
from jaxgen.tokenizers.bottlenecks import Quantized, Sizes, means


class Gaussian(nn.Module):
    """`channels` latents of twice as many means and log-variances."""

    channels: int = 4
    weight: float = 1e-6
    scales: Sizes = ()

    vocabulary = None
    learning = None
    inputs = property(lambda self: 2 * self.channels)

    def __call__(self, z_BHWC: Array, sizes: Sizes, keys: Array) -> Quantized:
        """For training: latents that were drawn, and their divergence from the standard Gaussian."""
        mean, log_variance = moments(z_BHWC)
        divergence = 0.5 * means(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
        return Quantized(
            (self.drawn(z_BHWC, keys),), (), self.weight * divergence, {'divergence': divergence}
        )

    def drawn(self, z_BHWC: Array, keys: Array) -> Array:
        """Latents, each example's drawn with its own key."""
        mean, log_variance = moments(z_BHWC)
        return mean + jnp.exp(0.5 * log_variance) * draw(jax.random.normal, keys, mean.shape[1:])


def moments(z_BHWC: Array) -> tuple[Array, Array]:
    """Means and log-variances, these within what can be computed."""
    mean, log_variance = jnp.split(z_BHWC, 2, -1)
    return mean, jnp.clip(log_variance, -30.0, 20.0)


def build(channels: Size = 4, weight: NonNegative = 1e-6) -> Gaussian:
    """The bottleneck; `weight` is how much the divergence, its mean over latents, counts."""
    return Gaussian(channels, weight)
