"""Feed-forward halves of a block.

GELU comes in two flavours that differ by up to 5e-4: the tanh approximation, which is also by far the faster
one on TPU, and the exact erf. A network says which one its paper has. SwiGLU is Shazeer, "GLU Variants
Improve Transformer", 2002.05202.
"""

# B batch, L tokens, D width

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from jaxgen.layers.linear import Initializer, Linear, xavier


class Mlp(nn.Module):
    """Linear, GELU, Linear; `gelu` is 'tanh' or 'erf'."""

    hidden: int
    features: int
    gelu: str = 'tanh'
    kernel_init: Initializer = xavier

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        if self.gelu not in ('tanh', 'erf'):
            raise ValueError(f"gelu is {self.gelu!r}; choose 'tanh' or 'erf'")
        hidden = Linear(self.hidden, kernel_init=self.kernel_init, name='up')(x_BLD)
        hidden = checkpoint_name(hidden, 'mlp_hidden')
        hidden = jax.nn.gelu(hidden, approximate=self.gelu == 'tanh')
        return Linear(self.features, kernel_init=self.kernel_init, name='down')(hidden)


class SwiGlu(nn.Module):
    """(silu(x W_gate) * x W_up) W_down."""

    hidden: int
    features: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        gate = checkpoint_name(Linear(self.hidden, use_bias=self.use_bias, name='gate')(x_BLD), 'mlp_hidden')
        up = checkpoint_name(Linear(self.hidden, use_bias=self.use_bias, name='up')(x_BLD), 'mlp_hidden')
        return Linear(self.features, use_bias=self.use_bias, name='down')(jax.nn.silu(gate) * up)
