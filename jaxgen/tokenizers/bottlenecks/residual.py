"""VAR's multi-scale residual quantization (Tian et al., "Visual Autoregressive Modeling", 2404.02905).

From coarse to fine, each scale quantizes what the scales before left over, at its own size and from one
codebook; its vectors, brought up to the full size and through a convolution phi, are added to what there is.
The few phis are shared by neighbouring scales. A generator is given the sum so far at the next scale's size.
"""

# B batch, H height, W width, C channels, L tokens

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgen.config import Count, NonNegative, Part, Share, Size, Whole
from jaxgen.layers.convolution import Convolution
from jaxgen.layers.resize import resize
from jaxgen.tokenizers.bottlenecks import GRADIENTS, Quantized, Sizes, Told, as_it_is, grids, means
from jaxgen.tokenizers.bottlenecks.learning import Learning
from jaxgen.tokenizers.bottlenecks.quantizer import as_map, as_tokens
from jaxgen.tokenizers.bottlenecks.vq import VectorQuantizer

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


class Phi(nn.Module):
    """A convolution that `share` of the map goes through."""

    share: float

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        mixed = Convolution(x_BHWC.shape[-1], name='convolution')(x_BHWC)
        return (1 - self.share) * x_BHWC + self.share * mixed


class ResidualQuantizer(VectorQuantizer):
    """`convolutions` are the phis for all scales together; without a `share` there are none."""

    convolutions: int = 4
    share: float = 0.5

    apart = False

    def setup(self) -> None:
        super().setup()
        self.phi = [Phi(self.share) for _ in range(self.convolutions if self.share else 0)]

    def begin(self, z: Array) -> Array:
        """Latents as they are: only comparing may be by direction."""
        return z

    def __call__(self, z_BHWC: Array, sizes: Sizes, keys: Array) -> Quantized:
        """For training: what is decoded, its codes and costs."""
        if self.is_initializing():
            for phi in self.phi:
                phi(z_BHWC)
        fixed = lax.stop_gradient(z_BHWC)
        so_far, codes, vectors, loss = jnp.zeros_like(fixed), [], [], 0.0
        for k, size in enumerate(sizes):
            left = as_tokens(resize(fixed - lax.stop_gradient(so_far), size, 'area'))
            codes.append(self.chosen(left))
            vectors.append(left.reshape(-1, left.shape[-1]))
            found = self.lookup(codes[-1])
            if self.learning.update == 'averages':
                found = lax.stop_gradient(found)  # the phis have their gradient all the same
            so_far = so_far + self._spread(found, k, sizes)
            near = means((lax.stop_gradient(so_far) - z_BHWC) ** 2)
            loss = loss + self.commitment * near + means((so_far - fixed) ** 2)
        return Quantized(
            (GRADIENTS[self.gradient](z_BHWC, lax.stop_gradient(so_far)),),
            tuple(codes),
            loss / len(sizes),
            {'quantization': near},
            jnp.concatenate(vectors),
            jnp.concatenate([chosen.reshape(-1) for chosen in codes]),
        )

    def samples(self, z_BHWC: Array, sizes: Sizes) -> Array:
        """The vectors it would have to quantize if those of each scale were met exactly."""
        vectors = []
        for size in sizes:
            at_scale = resize(z_BHWC, size, 'area')
            vectors.append(at_scale.reshape(-1, at_scale.shape[-1]))
            z_BHWC = z_BHWC - resize(at_scale, sizes[-1])
        return jnp.concatenate(vectors)

    def encode(self, z_BHWC: Array, sizes: Sizes, told: Told = as_it_is) -> tuple[Array, ...]:
        """Codes of every scale, [B, L] each; they make up for what is told of those before."""
        codes = []
        for k, size in enumerate(sizes):
            codes.append(self.chosen(as_tokens(resize(z_BHWC, size, 'area'))))
            z_BHWC = z_BHWC - self._spread(self.lookup(told(k, codes[-1])), k, sizes)
        return tuple(codes)

    def embed(self, codes: tuple[Array, ...], sizes: Sizes) -> Array:
        """The sum of all scales."""
        return sum(self._spread(self.lookup(chosen), k, sizes) for k, chosen in enumerate(codes))

    def feedback(
        self, vectors_BLC: Array, so_far_BHWC: Array, k: int, sizes: Sizes
    ) -> tuple[Array, Array | None]:
        """The sum up to scale k, and at the size of the next one."""
        so_far = so_far_BHWC + self._spread(vectors_BLC, k, sizes)
        following = as_tokens(resize(so_far, sizes[k + 1], 'area')) if k + 1 < len(sizes) else None
        return so_far, following

    def _spread(self, vectors_BLC: Array, k: int, sizes: Sizes) -> Array:
        """A scale's vectors over the whole map."""
        found = resize(as_map(vectors_BLC, sizes[k]), sizes[-1])
        if not self.phi:
            return found
        return self.phi[phi_of(k, len(sizes), len(self.phi))](found)


def phi_of(k: int, scales: int, convolutions: int) -> int:
    """The number of the phi that scale k goes through: the nearest of ticks on the way from first to last."""
    edge = 1 / (3 if convolutions == 4 else 2) / convolutions
    ticks = np.linspace(edge, 1 - edge, convolutions)
    return int(np.argmin(np.abs(ticks - k / max(1, scales - 1))))


def build(
    codes: Size = 4096,
    channels: Size = 32,
    scales: tuple[Size | tuple[Size, Size], ...] = SCALES,
    convolutions: Whole = 4,
    share: Share = 0.5,
    distance: Literal['euclidean', 'cosine'] = 'euclidean',
    commitment: NonNegative = 0.25,
    gradient: Literal['straight_through', 'rotation'] = 'straight_through',
    update: Literal['gradient', 'averages'] = 'gradient',
    decay: Part = 0.99,
    restart: Whole = 0,
    start: Whole = 0,
    k_means: bool = False,
    window: Count = 100,
) -> ResidualQuantizer:
    """The bottleneck; the defaults are VAR's published one.

    `convolutions` 0 is one a scale. What follows `update` is as Learning says.
    """
    if not scales:
        raise ValueError('bottleneck.scales is empty; give the sides of the scales, coarse to fine.')
    learning = Learning(update, decay, restart, start, k_means, window)
    return ResidualQuantizer(
        grids(scales),
        gradient,
        codes,
        channels,
        distance,
        commitment,
        learning,
        convolutions or len(scales),
        share,
    )
