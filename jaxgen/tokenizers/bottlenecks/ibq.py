"""Index backpropagation (Shi et al., "Scalable Image Tokenization", 2412.02692): 2^18 codes of 256 channels.

The choice among codes is a one-hot vector with the gradient of the softmax of latents times codebook, so that
every code of the codebook is moved in every step and none dies. The quantization loss is taken twice, of the
value with that gradient and of the plain one; a penalty on entropies makes choices sure and even.

Large codebooks are split over a mesh by rows, with
networks.tokenizer.rules = (('codebook/table$', ('tensor', None)),).
"""

# V vocabulary, C channels

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgen.config import Count, NonNegative, Positive, Size
from jaxgen.tokenizers.bottlenecks import grids, means
from jaxgen.tokenizers.bottlenecks.codebook import Codebook
from jaxgen.tokenizers.bottlenecks.learning import Learning
from jaxgen.tokenizers.bottlenecks.quantizer import Quantizer


class IndexBackpropagation(Quantizer):
    """`codes` vectors of `channels`, chosen by their inner product with the latents."""

    codes: int = 2**18
    channels: int = 256
    commitment: float = 0.25
    entropy: float = 0.05
    temperature: float = 0.01
    learning: Learning = Learning()

    vocabulary = property(lambda self: self.codes)

    def setup(self) -> None:
        self.codebook = Codebook(self.codes, self.channels)

    def chosen(self, z: Array) -> Array:
        """The code of the largest inner product."""
        return jnp.argmax(self._scores(z), -1).astype(jnp.int32)

    def lookup(self, codes: Array) -> Array:
        """The codebook's vectors."""
        return self.codebook.lookup(codes)

    def quantized(self, z: Array) -> tuple[Array, Array, Array, dict[str, Array]]:
        """Latents with the gradient by way of the index, codes, and costs."""
        table_VC, scores = self.codebook.vectors(), self._scores(z)
        soft = jax.nn.softmax(scores, -1)
        codes = jnp.argmax(scores, -1).astype(jnp.int32)
        plain = self.lookup(codes)
        # The one-hot vector itself is never made: its product with the codebook is the plain value.
        spread = jnp.einsum('...v,vc->...c', soft, table_VC)
        by_fixed = jnp.einsum('...v,vc->...c', lax.stop_gradient(soft), table_VC)
        found = plain + spread - by_fixed
        near = means((lax.stop_gradient(plain) - z) ** 2)
        loss = means((found - z) ** 2) + near
        loss = loss + self.commitment * means((plain - lax.stop_gradient(z)) ** 2)
        own, common = entropies(scores, self.temperature)
        told = {'quantization': near, 'entropy': means(own), 'diversity': jnp.broadcast_to(common, len(z))}
        return found, codes, loss + self.entropy * (means(own) - common), told

    def _scores(self, z: Array) -> Array:
        return jnp.einsum('...c,vc->...v', z, self.codebook.vectors(), precision='highest')


def entropies(scores: Array, temperature: float) -> tuple[Array, Array]:
    """Of the softmax of scores [..., V], in nats: each one's, and that of their mean."""
    log_soft = jax.nn.log_softmax(scores / temperature, -1)
    soft = jnp.exp(log_soft)
    mean = soft.mean(axis=tuple(range(scores.ndim - 1)))
    return -jnp.sum(soft * log_soft, -1), -jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-30)))


def build(
    codes: Count = 2**18,
    channels: Size = 256,
    commitment: NonNegative = 0.25,
    entropy: NonNegative = 0.05,
    temperature: Positive = 0.01,
    scales: tuple[Size | tuple[Size, Size], ...] = (),
) -> IndexBackpropagation:
    """The bottleneck. `entropy` is how much the penalty counts."""
    return IndexBackpropagation(
        grids(scales), 'straight_through', codes, channels, commitment, entropy, temperature
    )
