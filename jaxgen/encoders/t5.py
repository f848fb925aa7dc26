"""T5's encoder (Raffel et al., 1910.10683), as version 1.1 has it: GELU-gated MLPs (Shazeer, 2002.05202).

Pre-norm blocks with root-mean-square norms and no biases; positions enter as one learned bias a head and a
bucket of relative distance, the same in all layers. Scores are not divided by the root of a head's width, so
they grow large: attention is float32 throughout, and so is the residual stream, whatever `dtype` the matmuls
with weights are in.
"""

# B batch, M tokens, D width, H heads, K width of a head

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.config import Count, Depth, Dtype, Positive, Size
from jaxgen.layers.linear import Linear
from jaxgen.layers.modulation import rms_norm
from jaxgen.layers.stack import Segment, Stack

SIZES = {  # width, width of the MLP, depth, heads
    'small': (512, 1024, 8, 6),
    'base': (768, 2048, 12, 12),
    'large': (1024, 2816, 24, 16),
    'xl': (2048, 5120, 24, 32),
    'xxl': (4096, 10240, 24, 64),
}


def relative_buckets(length: int, buckets: int, distance: int) -> np.ndarray:
    """The bucket of every (query, key): [M, M]; half of them for keys to the right.

    Half of a side's buckets are one step wide, the others widen as a logarithm up to `distance`.
    """
    offset_MM = np.arange(length)[None, :] - np.arange(length)[:, None]
    side, steps = buckets // 2, np.abs(offset_MM)
    exact = side // 2
    # In float32 as published: a distance at the edge of two buckets falls to the side it was trained on.
    growth = np.log(np.maximum(steps, 1).astype(np.float32) / np.float32(exact))
    wide = exact + (growth / np.float32(math.log(distance / exact)) * (side - exact)).astype(np.int32)
    return np.where(steps < exact, steps, np.minimum(wide, side - 1)) + side * (offset_MM > 0)


class T5Block(nn.Module):
    """Attention and MLP, each on a normalised residual."""

    heads: int
    head_width: int
    ff: int
    gated: bool
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x_BMD: Array,
        bias_HMM: Array,
        mask_BM: Array,
        per_layer: dict | None = None,
        train: bool = False,
    ) -> Array:
        width, inner = x_BMD.shape[-1], self.heads * self.head_width

        def linear(features: int | tuple[int, int], deviation: float, name: str, merge: int = 1) -> Linear:
            init = nn.initializers.normal(deviation)
            return Linear(features, merge=merge, use_bias=False, kernel_init=init, name=name)

        y_BMD = rms_norm(epsilon=self.epsilon, dtype=self.dtype, name='norm1')(x_BMD)
        heads = (self.heads, self.head_width)
        q_BMHK = linear(heads, (width * self.head_width) ** -0.5, 'query')(y_BMD)
        k_BMHK, v_BMHK = (linear(heads, width**-0.5, name)(y_BMD) for name in ('key', 'value'))
        y_BMHK = _attend(q_BMHK, k_BMHK, v_BMHK, bias_HMM, mask_BM).astype(self.dtype)
        x_BMD = x_BMD + linear(width, inner**-0.5, 'out', merge=2)(y_BMHK)

        y_BMD = rms_norm(epsilon=self.epsilon, dtype=self.dtype, name='norm2')(x_BMD)
        hidden = linear(self.ff, width**-0.5, 'up')(y_BMD)
        if self.gated:
            gate = linear(self.ff, width**-0.5, 'gate')(y_BMD)
            hidden = jax.nn.gelu(gate, approximate=True) * hidden
        else:
            hidden = jax.nn.relu(hidden)
        return x_BMD + linear(width, self.ff**-0.5, 'down')(hidden)


def _attend(q_BMHK: Array, k_BMHK: Array, v_BMHK: Array, bias_HMM: Array, mask_BM: Array) -> Array:
    q, k, v = (a.astype(bias_HMM.dtype) for a in (q_BMHK, k_BMHK, v_BMHK))
    scores = jnp.einsum('blhk,bmhk->bhlm', q, k, precision='highest') + bias_HMM
    # Finite, so that a row without any key becomes an average and not NaN.
    scores = jnp.where(mask_BM[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum('bhlm,bmhk->blhk', jax.nn.softmax(scores, axis=-1), v, precision='highest')


class T5Encoder(nn.Module):
    """Token ids [B, M] and their mask to features [B, M, D] in `dtype`. Version 1.0 is not `gated`."""

    vocabulary: int
    width: int
    ff: int
    depth: int
    heads: int
    head_width: int = 64
    buckets: int = 32
    distance: int = 128
    gated: bool = True
    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids_BM: Array, mask_BM: Array) -> Array:
        exact = jnp.promote_types(self.dtype, jnp.float32)
        table = self.param('token', nn.initializers.normal(1.0), (self.vocabulary, self.width))
        # Out of range gives NaN, which is seen; the last row would be taken for any id beyond unnoticed.
        x_BMD = jnp.take(table, ids_BM, axis=0, mode='fill').astype(exact)
        init = nn.initializers.normal(self.width**-0.5)
        by_bucket = self.param('positions', init, (self.buckets, self.heads)).astype(exact)
        buckets_MM = relative_buckets(ids_BM.shape[1], self.buckets, self.distance)
        bias_HMM = jnp.moveaxis(by_bucket[buckets_MM], -1, 0)

        block = T5Block(
            self.heads, self.head_width, self.ff, self.gated, self.epsilon, self.dtype, parent=None
        )
        stack = Stack((Segment(block, self.depth),), name='blocks')
        x_BMD, _, _ = stack(x_BMD, bias_HMM, mask_BM.astype(bool))
        return rms_norm(epsilon=self.epsilon, dtype=self.dtype, name='norm')(x_BMD)


def build(
    size: str = 'xxl',
    vocabulary: Count = 32128,
    width: Size | None = None,
    ff: Size | None = None,
    depth: Depth | None = None,
    heads: Size | None = None,
    head_width: Size = 64,
    buckets: Count = 32,
    distance: Count = 128,
    gated: bool = True,
    epsilon: Positive = 1e-6,
    dtype: Dtype = 'float32',
) -> T5Encoder:
    """A T5 v1.1 encoder of a published size; width, ff, depth and heads override it."""
    if size not in SIZES:
        raise ValueError(f'T5 has no size {size!r}; choose from {sorted(SIZES)}.')
    if buckets % 4 or distance <= buckets // 4:
        raise ValueError(
            f'T5 with {buckets} buckets up to a distance of {distance}: give a multiple of 4 buckets, and a '
            'distance above a quarter of them.'
        )
    size_width, size_ff, size_depth, size_heads = SIZES[size]
    return T5Encoder(
        vocabulary=vocabulary,
        width=width or size_width,
        ff=ff or size_ff,
        depth=depth or size_depth,
        heads=heads or size_heads,
        head_width=head_width,
        buckets=buckets,
        distance=distance,
        gated=gated,
        epsilon=epsilon,
        dtype=jnp.dtype(dtype),
    )
