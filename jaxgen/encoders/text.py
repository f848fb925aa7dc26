"""A small bidirectional text transformer (arXiv:1706.03762) that trains together with its generator.

Pre-norm blocks over learned positions; padding is masked out of every attention.
"""

# B batch, M tokens, W width

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.layers.attention import SelfAttention
from jaxgen.layers.mlp import Mlp
from jaxgen.layers.modulation import layer_norm
from jaxgen.layers.stack import Segment, Stack


class TextBlock(nn.Module):
    """Attention and MLP, each on a normalised residual."""

    heads: int

    @nn.compact
    def __call__(
        self, x_BMW: Array, mask_BM: Array, per_layer: dict | None = None, train: bool = False
    ) -> Array:
        def norm(x: Array, name: str) -> Array:
            return layer_norm(affine=True, dtype=x.dtype, name=name)(x)

        width = x_BMW.shape[-1]
        x_BMW = x_BMW + SelfAttention(self.heads, name='attention')(norm(x_BMW, 'norm1'), mask=mask_BM)
        return x_BMW + Mlp(4 * width, width, name='mlp')(norm(x_BMW, 'norm2'))


class TextTransformer(nn.Module):
    """Token ids [B, M] and their mask to features [B, M, W]."""

    vocabulary: int
    length: int
    width: int
    depth: int
    heads: int
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, ids_BM: Array, mask_BM: Array) -> Array:
        normal = nn.initializers.normal(0.02)
        table = self.param('token', normal, (self.vocabulary, self.width))
        positions = self.param('position', normal, (self.length, self.width))
        x_BMW = jnp.take(table, ids_BM, axis=0) + positions[: ids_BM.shape[1]]
        blocks = (Segment(TextBlock(self.heads, parent=None), self.depth),)
        x_BMW, _, _ = Stack(blocks, name='blocks')(x_BMW.astype(self.dtype), mask_BM)
        return layer_norm(affine=True, dtype=jax.dtypes.canonicalize_dtype(self.dtype), name='norm')(x_BMW)
