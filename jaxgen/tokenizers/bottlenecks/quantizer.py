"""What quantizers share: every scale is the latents at another size, and a code for each of its places.

One scale is the ordinary case. Of several, none builds on another: each is a whole picture, smaller, as
FlexVAR has it (Jiao et al., 2502.20313), and a generator is given the scale before at the size of the next.
"""

# B batch, H height, W width, C channels, L tokens

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.layers.resize import resize
from jaxgen.tokenizers.bottlenecks import GRADIENTS, Quantized, Sizes, Told, as_it_is


class Quantizer(nn.Module):
    """Subclasses say what `chosen` and `lookup` are, and what it `costs`, or all of it by `quantized`.

    `channels` is what the encoder gives and the decoder takes; `gradient` is how it passes.
    """

    scales: Sizes = ()
    gradient: str = 'straight_through'

    inputs = property(lambda self: self.channels)
    learning = None
    distance = 'euclidean'  # by which k-means begins
    apart = True  # each scale is a picture of its own

    def chosen(self, z: Array) -> Array:
        """The codes of latents [..., C]."""
        raise NotImplementedError

    def lookup(self, codes: Array) -> Array:
        """The vectors of codes, [..., C]."""
        raise NotImplementedError

    def costs(self, z: Array, quantized: Array, codes: Array) -> tuple[Array, dict[str, Array]]:
        """What a scale adds to the loss, and numbers to tell, [B] each."""
        return jnp.zeros(len(z)), {}

    def quantized(self, z: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
        """Of latents that have begun: their quantized values with their gradient, codes, and costs."""
        codes = self.chosen(z)
        found = self.lookup(codes)
        return GRADIENTS[self.gradient](z, found), codes, *self.costs(z, found, codes)

    def begin(self, z: Array) -> Array:
        """Latents as they are compared with codes."""
        return z

    def __call__(self, z_BHWC: Array, sizes: Sizes, keys: Array) -> Quantized:
        """For training: what is decoded, its codes and costs."""
        maps, codes, losses, metrics, vectors = [], [], [], [], []
        for size in sizes:
            z = self.begin(resize(z_BHWC, size, 'area'))
            found, chosen, loss, told = self.quantized(z)
            maps.append(found)
            codes.append(chosen.reshape(len(z), -1))
            losses.append(loss)
            metrics.append(told)
            vectors.append(z.reshape(-1, z.shape[-1]))
        return Quantized(
            tuple(maps),
            tuple(codes),
            sum(losses) / len(sizes),
            {name: sum(told[name] for told in metrics) / len(sizes) for name in metrics[0]},
            jnp.concatenate(vectors),
            jnp.concatenate([chosen.reshape(-1) for chosen in codes]),
        )

    def samples(self, z_BHWC: Array, sizes: Sizes) -> Array:
        """The vectors that it will have to quantize, [N, C]."""
        vectors = [self.begin(resize(z_BHWC, size, 'area')) for size in sizes]
        return jnp.concatenate([z.reshape(-1, z.shape[-1]) for z in vectors])

    def encode(self, z_BHWC: Array, sizes: Sizes, told: Told = as_it_is) -> tuple[Array, ...]:
        """Codes of every scale, [B, L] each, whatever is told of the others."""
        at_scales = (self.begin(resize(z_BHWC, size, 'area')) for size in sizes)
        return tuple(self.chosen(z).reshape(len(z), -1) for z in at_scales)

    def embed(self, codes: tuple[Array, ...], sizes: Sizes) -> Array:
        """What codes of all scales stand for, as the decoder takes it."""
        return as_map(self.lookup(codes[-1]), sizes[-1])

    def feedback(
        self, vectors_BLC: Array, so_far_BHWC: Array, k: int, sizes: Sizes
    ) -> tuple[Array, Array | None]:
        """What there is after scale k, and what a generator is given for the next one."""
        found = as_map(vectors_BLC, sizes[k])
        return found, as_tokens(resize(found, sizes[k + 1])) if k + 1 < len(sizes) else None

    def teacher(self, codes: tuple[Array, ...], sizes: Sizes) -> Array:
        """What a generator is given for every scale but the first, side by side, [B, L, C]."""
        size = (len(codes[0]), *sizes[-1], self.channels)
        so_far, given = jnp.zeros(size), [jnp.zeros((size[0], 0, size[-1]))]
        for k, chosen in enumerate(codes[: len(sizes) - 1]):
            so_far, following = self.feedback(self.lookup(chosen), so_far, k, sizes)
            given.append(following)
        return jnp.concatenate(given, 1)


def as_map(vectors_BLC: Array, size: tuple[int, int]) -> Array:
    """Tokens in reading order as a map."""
    return vectors_BLC.reshape(len(vectors_BLC), *size, vectors_BLC.shape[-1])


def as_tokens(map_BHWC: Array) -> Array:
    """A map's places in reading order."""
    return map_BHWC.reshape(len(map_BHWC), -1, map_BHWC.shape[-1])
