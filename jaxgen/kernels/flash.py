"""Attention without its scores in memory (Dao et al., 2205.14135; 2307.08691) for TPUs, any width of a head.

Queries, keys and values lie feature by feature, [B, H, K, L]: the projections before and after emit and take
that layout at no cost, a head of 72 needs no padding to 128 lanes, softmax reduces along sublanes, and the
products with the weights stream 72 rows through the matrix unit instead of 128. All keys of a head stay in
VMEM; the scores of the next block of keys are computed while those of this one are used. Masked keys take no
work of their own: a spare row of the product carries the mask. Backward is one kernel of five products.
"""

# B batch, L queries, M keys, H heads, K width of a head

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxgen.kernels.flash_backward import flash_backward
from jaxgen.kernels.flash_forward import flash_forward

HIDDEN = -1e30  # the score of a masked key
BLOCKS = (512, 384, 256, 128)


def flash_attention(
    q_BLHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    mask_BM: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """softmax(q k' / sqrt(K)) v [B, L, H, K], and the log of the softmax's sums [B, H, L] in float32.

    `mask_BM` is True where a key may be seen; a row that sees none sees all alike. Reverse mode only, and
    once. The backward's residuals are named 'attention' and 'attention_statistics'. `interpret` runs the
    kernels without a TPU.
    """
    length, keys = q_BLHK.shape[1], k_BMHK.shape[1]
    query_block, key_block = flash_blocks(length, keys)
    padded = key_block * key_blocks(keys)[1]
    bias_B1M = None
    if mask_BM is not None or padded > keys:
        seen_BM = jnp.ones((len(q_BLHK), keys), bool) if mask_BM is None else mask_BM.astype(bool)
        some_B1 = seen_BM.any(1, keepdims=True)
        # Queries of zero see all alike, and nothing flows back through them.
        q_BLHK = jnp.where(some_B1[..., None, None], q_BLHK, 0)
        bias_B1M = jnp.where(_padded(seen_BM | ~some_B1, padded, 1), 0.0, HIDDEN)[:, None]
    q, k, v = (
        _padded(a.transpose(0, 2, 3, 1), n, 3)
        for a, n in ((q_BLHK, -(-length // query_block) * query_block), (k_BMHK, padded), (v_BMHK, padded))
    )
    y, log_sum = _flash((query_block, key_block, interpret), q, k, v, bias_B1M)
    return y[..., :length].transpose(0, 3, 1, 2), log_sum[:, :, 0, :length]


def reference(
    q_BLHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, mask_BM: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """What `flash_attention` computes, scores and all."""
    scores_BHLM = jnp.einsum('blhk,bmhk->bhlm', q_BLHK, k_BMHK, precision='highest').astype(jnp.float32)
    scores_BHLM = scores_BHLM * q_BLHK.shape[-1] ** -0.5
    if mask_BM is not None:
        seen_B11M = mask_BM.astype(bool)[:, None, None]
        scores_BHLM = jnp.where(seen_B11M, scores_BHLM, HIDDEN)
        scores_BHLM = jnp.where(seen_B11M.any(-1, keepdims=True), scores_BHLM, 0.0)
    weights_BHLM = jax.nn.softmax(scores_BHLM, -1).astype(v_BMHK.dtype)
    y_BLHK = jnp.einsum('bhlm,bmhk->blhk', weights_BHLM, v_BMHK, precision='highest')
    return y_BLHK, jax.nn.logsumexp(scores_BHLM, -1)


def key_blocks(keys: int) -> tuple[int, int]:
    """(keys in a block, blocks): one block, or an even number of them, as little padding as can be."""
    if keys <= BLOCKS[0]:
        return -(-keys // 128) * 128, 1
    block = min(BLOCKS, key=lambda block: -(-keys // (2 * block)) * block)
    return block, -(-keys // (2 * block)) * 2


def flash_blocks(queries: int, keys: int) -> tuple[int, int]:
    """Queries and keys of a block."""
    return min(BLOCKS, key=lambda block: -(-queries // block) * block), key_blocks(keys)[0]


def _padded(x: jax.Array, size: int, axis: int) -> jax.Array:
    if x.shape[axis] == size:
        return x
    return jnp.pad(x, [(0, size - x.shape[axis]) if a == axis else (0, 0) for a in range(x.ndim)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(blocks, q, k, v, bias):
    return flash_forward(q, k, v, bias, *blocks)


def _flash_forward(blocks, q, k, v, bias):
    y, log_sum = flash_forward(q, k, v, bias, *blocks)
    # Named here, for the backward reads these and not what is made of them.
    y, log_sum = checkpoint_name(y, 'attention'), checkpoint_name(log_sum, 'attention_statistics')
    return (y, log_sum), (q, k, v, bias, y, log_sum)


def _flash_backward(blocks, residuals, gradients):
    q, k, v, bias, y, log_sum = residuals
    dq, dk, dv = flash_backward(q, k, v, bias, y, log_sum, *gradients, *blocks)
    return dq, dk, dv, None if bias is None else jnp.zeros_like(bias)


_flash.defvjp(_flash_forward, _flash_backward)
