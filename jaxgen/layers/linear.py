"""Every matmul with weights.

The kernel of a Linear is always a matrix [in, out] in the parameter tree. Heads are split off the output and
merged from the input by reshaping the kernel, so that no activation is ever transposed or reshaped.

A kernel may be replaced in the tree by a registered pytree class with a method `dot(x) -> y`, x of shape
[..., in] and y of shape [..., out] (a low-rank update over a frozen matrix, int8, ...). Inside a stack of
layers all arrays of such a class carry the leading layer axis, which is gone when `dot` is called. No network
knows which it has.
"""

# B batch, L tokens, D width, H heads, K width of a head

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Initializer = Callable[..., jax.Array]

xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros_init()


def xavier_fused(parts: int) -> Initializer:
    """Glorot uniform for one of `parts` equal slices of a fused projection, as published code draws it."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        bound = math.sqrt(6.0 / (shape[0] + parts * shape[1]))
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def is_array(kernel: Any) -> bool:
    """Whether a kernel is a plain array (and not a class that brings its own `dot`)."""
    return isinstance(kernel, jax.Array | np.ndarray)


def platform() -> str:
    """That of the mesh's devices, which need not be there, or of those at hand."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


class Linear(nn.Module):
    """y = x W + b over the last `merge` axes of x, giving the axes `features`.

    `features=(H, K)` gives heads, `merge=2` takes them. Computes in the dtype of x.
    """

    features: int | tuple[int, ...]
    merge: int = 1
    use_bias: bool = True
    kernel_init: Initializer = xavier
    bias_init: Initializer = zeros
    precision: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        lead, inputs = x.shape[: x.ndim - self.merge], x.shape[x.ndim - self.merge :]
        width_in, width_out = math.prod(inputs), math.prod(features)
        # get_variable, because self.param would compare a replaced kernel's leaves with the matrix's shape.
        if self.has_variable('params', 'kernel'):
            kernel = self.get_variable('params', 'kernel')
        else:
            kernel = self.param('kernel', self.kernel_init, (width_in, width_out))

        if is_array(kernel):
            if kernel.shape != (width_in, width_out):
                raise ValueError(
                    f'{"/".join(self.path)}: kernel is {kernel.shape} but the input and features ask for '
                    f'{(width_in, width_out)}; check the sizes the network was built with'
                )
            kernel = jnp.asarray(kernel, x.dtype)
            if platform() == 'cpu':
                # The CPU's compiler makes a kernel's gradient two to three times faster from these.
                rows = jnp.dot(x.reshape(-1, width_in), kernel, precision=self.precision)
                y = rows.reshape(lead + features)
            else:
                kernel = kernel.reshape(inputs + features)
                over = tuple(range(x.ndim - self.merge, x.ndim)), tuple(range(self.merge))
                y = jax.lax.dot_general(x, kernel, (over, ((), ())), precision=self.precision)
        else:
            y = kernel.dot(x.reshape(lead + (width_in,))).reshape(lead + features)
        if self.use_bias:
            bias = self.param('bias', self.bias_init, (width_out,))
            y = y + bias.astype(x.dtype).reshape(features)
        return y
