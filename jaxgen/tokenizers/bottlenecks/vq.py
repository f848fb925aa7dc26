"""Vector quantization (van den Oord et al., 1711.00937): each latent vector becomes its nearest code's.

The codebook follows its vectors by gradient or by running averages, and a term keeps the encoder near it.
Several `scales` quantize the latents at each size on its own, as FlexVAR needs (2502.20313).
"""

from typing import Literal

from jax import Array, lax

from jaxgen.config import Count, NonNegative, Part, Size, Whole
from jaxgen.tokenizers.bottlenecks import Sizes, grids, means, unit
from jaxgen.tokenizers.bottlenecks.codebook import Codebook, Distance
from jaxgen.tokenizers.bottlenecks.learning import Learning
from jaxgen.tokenizers.bottlenecks.quantizer import Quantizer


class VectorQuantizer(Quantizer):
    """`codes` vectors of `channels`; `commitment` weighs how near the encoder has to stay."""

    codes: int = 16384
    channels: int = 8
    distance: Distance = 'sphere'
    commitment: float = 0.25
    learning: Learning | None = None

    vocabulary = property(lambda self: self.codes)

    def setup(self) -> None:
        self.codebook = Codebook(self.codes, self.channels, self.distance)

    def begin(self, z: Array) -> Array:
        """Latents, on the sphere where the codes are."""
        return unit(z) if self.distance == 'sphere' else z

    def chosen(self, z: Array) -> Array:
        """The nearest code of each vector."""
        return self.codebook.nearest(z)

    def lookup(self, codes: Array) -> Array:
        """The codebook's vectors."""
        return self.codebook.lookup(codes)

    def costs(self, z: Array, quantized: Array, codes: Array) -> tuple[Array, dict[str, Array]]:
        """The encoder's distance from the codes and, where they learn by it, the codes' from the encoder."""
        near = means((z - lax.stop_gradient(quantized)) ** 2)
        loss = self.commitment * near
        if self.learning.update == 'gradient':
            loss = loss + means((quantized - lax.stop_gradient(z)) ** 2)
        return loss, {'quantization': near}


def build(
    codes: Size = 16384,
    channels: Size = 8,
    scales: tuple[Size | tuple[Size, Size], ...] = (),
    distance: Distance = 'sphere',
    commitment: NonNegative = 0.25,
    gradient: Literal['straight_through', 'rotation'] = 'straight_through',
    update: Literal['gradient', 'averages'] = 'gradient',
    decay: Part = 0.99,
    restart: Whole = 0,
    start: Whole = 0,
    k_means: bool = False,
    window: Count = 100,
) -> VectorQuantizer:
    """The bottleneck; the defaults are LlamaGen's and FlexVAR's. From `update` on it is as Learning says."""
    learning = Learning(update, decay, restart, start, k_means, window)
    sizes: Sizes = grids(scales)
    return VectorQuantizer(sizes, gradient, codes, channels, distance, commitment, learning)
