"""What a network's parameters are kept in while pictures are drawn: bfloat16, or int8 matrices.

int8 is the plain form of LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339) without its outliers: each output
of a kernel has its own scale, found from the weights, and each token of the input its own, found as it comes;
the product is one of integers. Kernels in stacks of layers are quantized, which is nearly all of a network.
"""

import re
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxgen.layers.linear import is_array

PRECISIONS = ('float32', 'bfloat16', 'int8')
EXACT = PRECISIONS[0]
QUANTIZED = r'(^|/)stack/\d+/.*kernel$'
LARGEST = 127


@flax.struct.dataclass
class Int8:
    """A kernel [in, out] as `values` int8 times `scale` [out]; in a stack both have the layers in front."""

    values: jax.Array
    scale: jax.Array

    def dot(self, x: jax.Array) -> jax.Array:
        """x W, the input rounded to int8 row by row."""
        rows, size = _rounded(x, axis=-1)
        y = jax.lax.dot_general(
            rows, self.values, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.int32
        )
        return (y.astype(jnp.float32) * size * self.scale).astype(x.dtype)


def quantized(kernel: jax.Array) -> Int8:
    """A matrix, or a stack of them, in int8."""
    values, scale = _rounded(kernel, axis=-2)
    return Int8(values, scale.squeeze(-2))


def keep(params: Any, precision: str) -> Any:
    """A network's parameters as they are kept."""
    check(precision)
    if precision == EXACT:
        return params

    def kept(path: tuple, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        if precision == 'int8' and re.search(QUANTIZED, name) and is_array(leaf) and leaf.ndim == 3:
            return quantized(leaf)
        return leaf.astype(jnp.bfloat16)

    return jax.tree_util.tree_map_with_path(kept, params)


def check(precision: str) -> None:
    """Refuse what is no precision."""
    if precision not in PRECISIONS:
        raise ValueError(f'precision is {precision!r}; choose from {", ".join(PRECISIONS)}.')


def _rounded(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """x as int8 and the size of one of its steps along an axis."""
    x = x.astype(jnp.float32)
    size = jnp.maximum(jnp.abs(x).max(axis, keepdims=True), jnp.finfo(jnp.float32).tiny) / LARGEST
    return jnp.round(x / size).astype(jnp.int8), size
