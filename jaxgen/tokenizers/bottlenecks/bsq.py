"""Binary spherical quantization (Zhao et al., 2406.07548): a corner of the sphere's cube, a bit a channel.

Latents are brought to the unit sphere and every channel to its sign over sqrt(channels). A soft assignment
falls apart into bits, so its entropy is a sum over them; that of its mean over the data, which is to be large
where the other is to be small, is taken over groups of bits, each with all of its 2^bits codes (exact for one
group). The first channel is the lowest bit.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgen.config import NonNegative, Positive, Range, Size
from jaxgen.tokenizers.bottlenecks import grids, means, unit
from jaxgen.tokenizers.bottlenecks.quantizer import Quantizer

WIDEST = 16  # bits of a group, whose codes are all written out


class BinarySpherical(Quantizer):
    """`channels` bits. `sharpness` is the soft assignment's inverse temperature."""

    channels: int = 18
    groups: int = 2
    sharpness: float = 100.0
    commitment: float = 0.25
    entropy: float = 0.1
    diversity: float = 1.0

    vocabulary = property(lambda self: 2**self.channels)

    def begin(self, z: Array) -> Array:
        """Latents on the sphere."""
        return unit(z)

    def chosen(self, z: Array) -> Array:
        """The signs as a number."""
        return jnp.sum((z > 0) * 2 ** np.arange(self.channels), -1).astype(jnp.int32)

    def lookup(self, codes: Array) -> Array:
        """The corner that a number stands for."""
        bits = codes[..., None] >> np.arange(self.channels) & 1
        return (2.0 * bits - 1) / np.sqrt(self.channels).astype(np.float32)

    def costs(self, z: Array, quantized: Array, codes: Array) -> tuple[Array, dict[str, Array]]:
        """How far the corners are, and how far the assignment is from sure, and from even over all codes."""
        near = means(jnp.sum((z - lax.stop_gradient(quantized)) ** 2, -1))
        own, common = entropies(z, self.groups, self.sharpness)
        penalty = means(own) - self.diversity * common
        loss = self.commitment * near + self.entropy * penalty
        told = {'quantization': near, 'entropy': means(own), 'diversity': jnp.broadcast_to(common, len(z))}
        return loss, told


def entropies(z: Array, groups: int, sharpness: float) -> tuple[Array, Array]:
    """Of the soft assignment of points [..., C] of the sphere, in nats: each one's, and that of their mean.

    A corner c is chosen with the softmax over corners of sharpness c . z, bit by bit a sigmoid.
    """
    scores = 2 * sharpness * z / np.sqrt(z.shape[-1]).astype(np.float32)
    likely, unlikely = jax.nn.log_sigmoid(scores), jax.nn.log_sigmoid(-scores)
    own = -jnp.sum(jnp.exp(likely) * likely + jnp.exp(unlikely) * unlikely, -1)
    width = z.shape[-1] // groups
    ones = np.arange(2**width)[:, None] >> np.arange(width) & 1
    by_group = [a.reshape(-1, groups, width) for a in (likely, unlikely)]
    joint = jnp.einsum('ngw,vw->ngv', by_group[0], ones) + jnp.einsum('ngw,vw->ngv', by_group[1], 1 - ones)
    mean = jnp.exp(joint).mean(0)
    return own, -jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-30)))


def build(
    channels: Annotated[int, Range(1, 30)] = 18,
    groups: Size = 2,
    sharpness: Positive = 100.0,
    commitment: NonNegative = 0.25,
    entropy: NonNegative = 0.1,
    diversity: NonNegative = 1.0,
    scales: tuple[Size | tuple[Size, Size], ...] = (),
    gradient: Literal['straight_through', 'rotation'] = 'straight_through',
) -> BinarySpherical:
    """The bottleneck of so many bits.

    groups: how many the bits fall into where the entropy of the mean is taken. entropy: how much the penalty
    counts; diversity: how much of it is the mean's.
    """
    if channels % groups or channels // groups > WIDEST:
        raise ValueError(
            f'bottleneck.groups is {groups}, for {channels} bits; it must divide them into groups of at most '
            f'{WIDEST}.'
        )
    return BinarySpherical(
        grids(scales), gradient, channels, groups, sharpness, commitment, entropy, diversity
    )
