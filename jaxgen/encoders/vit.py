"""The blocks of a vision transformer (Dosovitskiy et al., 2010.11929), which CLIP's text is read by too.

Pre-norm attention and MLP; DINOv2's also scale what they add by a learned number a channel (LayerScale,
Touvron et al., 2103.17239). Learned positions are a square table, resized for pictures of other sizes.
"""

# B batch, L tokens, D width, H and W rows and columns of patches

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.layers.attention import SelfAttention
from jaxgen.layers.mlp import Mlp, SwiGlu
from jaxgen.layers.modulation import layer_norm
from jaxgen.layers.resize import resize


class VitBlock(nn.Module):
    """Attention and MLP, each on a normalised residual. `gelu` may be 'swiglu'; `scale` starts LayerScale."""

    heads: int
    hidden: int
    gelu: str = 'erf'
    epsilon: float = 1e-6
    causal: bool = False
    scale: float | None = None
    attention: str | None = None

    @nn.compact
    def __call__(
        self,
        x_BLD: Array,
        mask_BL: Array | None = None,
        per_layer: dict | None = None,
        train: bool = False,
    ) -> Array:
        width = x_BLD.shape[-1]

        def norm(name: str) -> Array:
            return layer_norm(affine=True, epsilon=self.epsilon, dtype=x_BLD.dtype, name=name)(x_BLD)

        def scaled(y_BLD: Array, name: str) -> Array:
            if self.scale is None:
                return y_BLD
            factors = self.param(name, nn.initializers.constant(self.scale), (width,))
            return y_BLD * factors.astype(y_BLD.dtype)

        attention = SelfAttention(self.heads, implementation=self.attention, name='attention')
        x_BLD = x_BLD + scaled(attention(norm('norm1'), mask=mask_BL, causal=self.causal), 'scale1')
        if self.gelu == 'swiglu':
            mlp = SwiGlu(self.hidden, width, use_bias=True, name='mlp')
        else:
            mlp = Mlp(self.hidden, width, self.gelu, name='mlp')
        return x_BLD + scaled(mlp(norm('norm2')), 'scale2')


def resized_positions(
    table_LD: Array, grid: tuple[int, int], *, antialias: bool = False, offset: float = 0.0
) -> Array:
    """Positions of the class token and of a grid of patches, [1 + H W, D], from those of a square grid."""
    side, width = math.isqrt(table_LD.shape[0] - 1), table_LD.shape[1]
    if grid == (side, side):
        return table_LD
    patches_HWD = table_LD[1:].reshape(side, side, width)
    patches_HWD = resize(patches_HWD, grid, antialias=antialias, offset=offset)
    return jnp.concatenate([table_LD[:1], patches_HWD.reshape(-1, width)])


def with_tokens(tokens_TD: Array, x_BLD: Array) -> Array:
    """A sequence with the same tokens before each of its examples."""
    tokens_BTD = jnp.broadcast_to(tokens_TD.astype(x_BLD.dtype), (x_BLD.shape[0], *tokens_TD.shape))
    return jnp.concatenate([tokens_BTD, x_BLD], axis=1)
