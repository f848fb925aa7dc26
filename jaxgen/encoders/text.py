"""A small bidirectional text transformer (arXiv:1706.03762) that trains together with its generator.

Pre-norm blocks with rotary positions (arXiv:2104.09864): what a word stands next to decides its meaning.
Padding is masked out of every attention.
"""

# B batch, M tokens, W width

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.layers.attention import SelfAttention
from jaxgen.layers.mlp import Mlp
from jaxgen.layers.modulation import layer_norm
from jaxgen.layers.rope import rope_1d
from jaxgen.layers.stack import Segment, Stack

ROPE_BASE = 100.0  # for texts of tens of tokens


class TextBlock(nn.Module):
    """Attention and MLP, each on a normalised residual."""

    heads: int

    @nn.compact
    def __call__(
        self, x_BMW: Array, mask_BM: Array, per_layer: dict | None = None, train: bool = False
    ) -> Array:
        def norm(x: Array, name: str) -> Array:
            return layer_norm(affine=True, dtype=x.dtype, name=name)(x)

        length, width = x_BMW.shape[1:]
        rope = rope_1d(np.arange(length), width // self.heads, ROPE_BASE)
        attention = SelfAttention(self.heads, name='attention')
        x_BMW = x_BMW + attention(norm(x_BMW, 'norm1'), rope=rope, mask=mask_BM)
        return x_BMW + Mlp(4 * width, width, name='mlp')(norm(x_BMW, 'norm2'))


class TextTransformer(nn.Module):
    """Token ids [B, M] and their mask to features [B, M, W]."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, ids_BM: Array, mask_BM: Array) -> Array:
        shape = (self.vocabulary, self.width)
        table = self.param('token', nn.initializers.normal(self.width**-0.5), shape)
        x_BMW = jnp.take(table, ids_BM, axis=0) * self.width**0.5
        blocks = (Segment(TextBlock(self.heads, parent=None), self.depth),)
        x_BMW, _, _ = Stack(blocks, name='blocks')(x_BMW.astype(self.dtype), mask_BM)
        return layer_norm(affine=True, dtype=jax.dtypes.canonicalize_dtype(self.dtype), name='norm')(x_BMW)
