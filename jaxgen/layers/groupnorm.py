"""Group normalisation (Wu & He, "Group Normalization", 1803.08494) in two halves.

What is found over the whole map (each group's mean and variance) is split from what is done to each pixel, so
that the second half can run inside the convolution that follows, one strip of the map at a time. Statistics
are float32 and two-pass: the one-pass variance loses two digits on offset inputs.
"""

# B batch, H height, W width, C channels, G groups

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Normaliser:
    """What to do to each pixel, float32 [B, 1, 1, C] and [C]."""

    mean: jax.Array
    scale: jax.Array
    bias: jax.Array

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """The normalised pixels, in the dtype they came in."""
        y = (x_BHWC.astype(jnp.float32) - self.mean) * self.scale + self.bias
        return y.astype(x_BHWC.dtype)


class GroupNorm(nn.Module):
    """The normaliser of a map [B, H, W, C], with a learned scale and bias."""

    groups: int = 32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> Normaliser:
        channels = x_BHWC.shape[-1]
        if channels % self.groups:
            raise ValueError(
                f'{"/".join(self.path)}: {channels} channels do not fall into {self.groups} groups; choose '
                'widths that the number of groups divides, or another number'
            )
        scale = self.param('scale', nn.initializers.ones, (channels,)).astype(jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (channels,)).astype(jnp.float32)
        x = x_BHWC.astype(jnp.float32)
        mean_BC = self._mean(x)
        deviation_BC = jnp.sqrt(self._mean((x - mean_BC) ** 2) + self.epsilon)
        return Normaliser(mean_BC, scale / deviation_BC, bias)

    def _mean(self, x_BHWC: jax.Array) -> jax.Array:
        """Each group's mean, repeated for its channels; a mean of means, so that large maps add up well."""
        mean_BC = x_BHWC.mean(2).mean(1)
        mean_BG = mean_BC.reshape(len(mean_BC), self.groups, -1).mean(-1)
        return jnp.repeat(mean_BG, mean_BC.shape[-1] // self.groups, -1)[:, None, None]
