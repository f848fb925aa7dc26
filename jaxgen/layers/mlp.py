"""Feed-forward halves of a block.

GELU comes in two flavours that differ by up to 5e-4, the tanh approximation, which is also by far the faster
one on TPU, and the exact erf; and there is CLIP's 'quick' one, x sigmoid(1.702 x), up to 2e-2 off. A network
says which one its paper has. SwiGLU is Shazeer, "GLU Variants Improve Transformer", 2002.05202.
"""

# B batch, L tokens, D width

import functools

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from jaxgen.layers.linear import Initializer, Linear, xavier

GELUS = {
    'tanh': jax.nn.gelu,
    'erf': functools.partial(jax.nn.gelu, approximate=False),
    'quick': lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class Mlp(nn.Module):
    """Linear, GELU, Linear; `gelu` is 'tanh', 'erf' or 'quick'."""

    hidden: int
    features: int
    gelu: str = 'tanh'
    kernel_init: Initializer = xavier
    use_bias: bool = True

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        if self.gelu not in GELUS:
            raise ValueError(f'gelu is {self.gelu!r}; choose from {tuple(GELUS)}')
        options = {'use_bias': self.use_bias, 'kernel_init': self.kernel_init}
        hidden = checkpoint_name(Linear(self.hidden, name='up', **options)(x_BLD), 'mlp_hidden')
        return Linear(self.features, name='down', **options)(GELUS[self.gelu](hidden))


class SwiGlu(nn.Module):
    """(silu(x W_gate) * x W_up) W_down."""

    hidden: int
    features: int
    use_bias: bool = False
    kernel_init: Initializer = xavier  # of the gate and the projection beside it
    out_init: Initializer = xavier

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        gate, up = (
            Linear(self.hidden, use_bias=self.use_bias, kernel_init=self.kernel_init, name=name)(x_BLD)
            for name in ('gate', 'up')
        )
        gate, up = checkpoint_name(gate, 'mlp_hidden'), checkpoint_name(up, 'mlp_hidden')
        out = Linear(self.features, use_bias=self.use_bias, kernel_init=self.out_init, name='down')
        return out(jax.nn.silu(gate) * up)
