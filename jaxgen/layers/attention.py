"""Attention (Vaswani et al., 1706.03762) with heads kept in (B, L, H, K).

Query, key and value are projected separately. One function attends, by what is fastest for the backend and
the shape: our kernel on TPUs, cuDNN's on GPUs, or plain products whose scores stay in the compute dtype with
float32 softmax statistics. Optional rotary positions, normalised queries and keys (Dehghani et al.,
2302.05442), compressed keys and values (layers/compress.py).
"""

# B batch, L query tokens, M key tokens, H heads, K width of a head, D width

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxgen.kernels.flash import flash_attention
from jaxgen.layers import sequence
from jaxgen.layers.compress import Compress
from jaxgen.layers.linear import Initializer, Linear, platform, xavier, xavier_fused
from jaxgen.layers.modulation import layer_norm, rms_norm
from jaxgen.layers.rope import rotate

IMPLEMENTATIONS = ('einsum', 'float32', 'xla', 'cudnn', 'flash')
# As many scores of one example are computed at a time; only images above 512 px have more.
SCORES = 2**26
# On TPUs the kernel is faster from as many scores of a head on: 256 x 256, but not 256 x 120.
FLASH_SCORES = 2**16


def _allowed(mask: jax.Array | None, causal: bool, queries: int, keys: int) -> jax.Array | None:
    """The mask as [B or 1, 1, L or 1, M], True where a query may look."""
    allowed = None
    if mask is not None:
        if mask.ndim not in (2, 3):
            raise ValueError(f'an attention mask is [B, keys] or [B, queries, keys], not {mask.shape}')
        allowed = (mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]).astype(bool)
    if causal:
        triangle = jnp.tril(jnp.ones((queries, keys), bool), keys - queries)[None, None]
        allowed = triangle if allowed is None else allowed & triangle
    return allowed


def _einsum_attention(
    q_BLHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, allowed: jax.Array | None, precision: str | None
) -> jax.Array:
    batch, length, heads, _ = q_BLHK.shape
    wanted = heads * length * k_BMHK.shape[1] / SCORES
    pieces = next(n for n in range(1, length + 1) if length % n == 0 and (n >= wanted or n == length))
    if pieces == 1:
        return _attend_to_all(q_BLHK, k_BMHK, v_BMHK, allowed, precision)

    def attend(part: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        q, seen = part
        return _attend_to_all(q, k_BMHK, v_BMHK, allowed if seen is None else seen, precision)

    # A piece takes every n-th query, so that queries may be sharded along the sequence.
    queries = jnp.moveaxis(q_BLHK.reshape(batch, -1, pieces, *q_BLHK.shape[2:]), 2, 0)
    seen = None
    if allowed is not None and allowed.shape[2] > 1:
        seen = jnp.moveaxis(allowed.reshape(*allowed.shape[:2], -1, pieces, allowed.shape[3]), 3, 0)
    y = jax.lax.map(jax.checkpoint(attend), (queries, seen))
    return jnp.moveaxis(y, 0, 2).reshape(batch, length, heads, -1)


def _attend_to_all(
    q_BLHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, allowed: jax.Array | None, precision: str | None
) -> jax.Array:
    scores_BHLM = jnp.einsum('blhk,bmhk->bhlm', q_BLHK, k_BMHK, precision=precision).astype(jnp.float32)
    scores_BHLM = scores_BHLM * q_BLHK.shape[-1] ** -0.5
    if allowed is not None:
        # Finite, so that a row without any key becomes an average and not NaN.
        scores_BHLM = jnp.where(allowed, scores_BHLM, jnp.finfo(jnp.float32).min)
    weights_BHLM = jax.nn.softmax(scores_BHLM, axis=-1).astype(v_BMHK.dtype)
    return jnp.einsum('bhlm,bmhk->blhk', weights_BHLM, v_BMHK, precision=precision)


def attention(
    q_BLHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """softmax(q k' / sqrt(K)) v per head; under the checkpoint name 'attention'.

    `mask` is True where a key may be seen, [B, M] or [B, L, M]. Implementations: 'einsum' (scores in the
    dtype given, statistics float32), 'float32' (everything float32), 'xla' and 'cudnn' (those of
    jax.nn.dot_product_attention, the latter on GPUs only), 'flash' (our kernel, TPUs only, without causal
    order, and masks of keys alone). None is the fastest for the backend and the shape; 'einsum' is the one
    that also has forward-mode and second derivatives.
    """
    implementation = implementation or best(q_BLHK, k_BMHK, mask, causal)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f'attention implementation {implementation!r} is unknown; choose from {IMPLEMENTATIONS}'
        )
    if implementation == 'flash' and (causal or (mask is not None and mask.ndim != 2)):
        raise ValueError("attention 'flash' has no causal order, and masks of keys alone; use 'einsum'")
    allowed = _allowed(mask, causal, q_BLHK.shape[1], k_BMHK.shape[1])
    attend = functools.partial(_local_attention, implementation)
    # The compiler splits products over a mesh, but neither kernels nor what needs an exchange of tokens.
    if implementation == 'flash' or sequence.is_split():
        return sequence.on_shards(attend, q_BLHK, k_BMHK, v_BMHK, allowed)
    return attend(q_BLHK, k_BMHK, v_BMHK, allowed)


def _local_attention(
    implementation: str,
    q_BLHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    allowed: jax.Array | None = None,
) -> jax.Array:
    if implementation == 'flash':  # names what its backward reads itself
        return flash_attention(q_BLHK, k_BMHK, v_BMHK, None if allowed is None else allowed[:, 0, 0])[0]
    if implementation == 'einsum':
        y_BLHK = _einsum_attention(q_BLHK, k_BMHK, v_BMHK, allowed, None)
    elif implementation == 'float32':
        q, k, v = (a.astype(jnp.float32) for a in (q_BLHK, k_BMHK, v_BMHK))
        y_BLHK = _einsum_attention(q, k, v, allowed, 'highest').astype(q_BLHK.dtype)
    else:
        if allowed is not None:
            shape = (q_BLHK.shape[0], 1, q_BLHK.shape[1], k_BMHK.shape[1])
            allowed = jnp.broadcast_to(allowed, shape)
        y_BLHK = jax.nn.dot_product_attention(
            q_BLHK, k_BMHK, v_BMHK, mask=allowed, implementation=implementation
        )
    return checkpoint_name(y_BLHK, 'attention')


def best(q_BLHK: jax.Array, k_BMHK: jax.Array, mask: jax.Array | None, causal: bool) -> str:
    """The fastest implementation for the devices of the mesh, or those at hand, and these shapes."""
    width, dtype = q_BLHK.shape[3], q_BLHK.dtype
    keys_alone = not causal and (mask is None or mask.ndim == 2)
    if (
        platform() == 'tpu'
        and dtype == jnp.bfloat16
        and keys_alone
        and flash_fits(q_BLHK.shape[1] * k_BMHK.shape[1], width)
    ):
        return 'flash'
    if (
        platform() in ('gpu', 'cuda')
        and dtype in (jnp.bfloat16, jnp.float16)
        and width % 8 == 0
        and width <= 128
    ):
        return 'cudnn'
    return 'einsum'


def flash_fits(scores: int, width: int) -> bool:
    """Whether our kernel is faster than plain products on a TPU."""
    return scores >= FLASH_SCORES and width % 8 == 0 and width <= 128


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself.

    `qk_norm` layer-normalises whole queries and keys, `head_norm` RMS-normalises those of each head.
    `compress` > 1 lets keys and values be a coarser grid, and then needs `grid`. `rope` are angles
    [L, K / 2].
    """

    heads: int
    qk_norm: bool = False
    compress: int = 1
    sampling: str = 'conv'
    implementation: str | None = None
    head_norm: bool = False

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        *,
        grid: tuple[int, int] | None = None,
        rope: jax.Array | None = None,
        mask: jax.Array | None = None,
        causal: bool = False,
    ) -> jax.Array:
        width = x_BLD.shape[-1]
        heads = head_shape(self.heads, width)
        whole = self.qk_norm or self.compress > 1
        init = xavier_fused(3)
        q, k, v = (
            Linear(width if whole else heads, kernel_init=init, name=name)(x_BLD)
            for name in ('query', 'key', 'value')
        )
        if self.qk_norm:
            q = layer_norm(affine=True, epsilon=1e-5, dtype=q.dtype, name='query_norm')(q)
            k = layer_norm(affine=True, epsilon=1e-5, dtype=k.dtype, name='key_norm')(k)
        if self.compress > 1:
            if grid is None or rope is not None or mask is not None or causal:
                raise ValueError(
                    'compressed attention needs the grid, and takes no rope, mask or causal order'
                )
            k, v = Compress(self.compress, self.sampling, name='compress')((k, v), grid)
        if whole:
            q, k, v = (a.reshape(*a.shape[:2], *heads) for a in (q, k, v))
        if self.head_norm:
            q = rms_norm(dtype=q.dtype, name='query_head_norm')(q)
            k = rms_norm(dtype=k.dtype, name='key_head_norm')(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return _attend(q, k, v, mask, causal, self.implementation, xavier)


class CrossAttention(nn.Module):
    """Multi-head attention of a sequence to a context, `mask` [B, M] being True where the context is real."""

    heads: int
    implementation: str | None = None
    out_init: Initializer = xavier

    @nn.compact
    def __call__(self, x_BLD: jax.Array, context_BMD: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        heads = head_shape(self.heads, x_BLD.shape[-1])
        q = Linear(heads, name='query')(x_BLD)
        k = Linear(heads, kernel_init=xavier_fused(2), name='key')(context_BMD)
        v = Linear(heads, kernel_init=xavier_fused(2), name='value')(context_BMD)
        return _attend(q, k, v, mask, False, self.implementation, self.out_init)


def head_shape(heads: int, width: int) -> tuple[int, int]:
    """(heads, width of a head)."""
    if width % heads:
        raise ValueError(f'a width of {width} does not divide into {heads} heads')
    return heads, width // heads


def _attend(
    q_BLHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    mask: jax.Array | None,
    causal: bool,
    implementation: str | None,
    out_init: Initializer,
) -> jax.Array:
    q_BLHK = checkpoint_name(q_BLHK, 'query')
    k_BMHK = checkpoint_name(k_BMHK, 'key')
    v_BMHK = checkpoint_name(v_BMHK, 'value')
    y_BLHK = attention(q_BLHK, k_BMHK, v_BMHK, mask, causal=causal, implementation=implementation)
    width = y_BLHK.shape[-2] * y_BLHK.shape[-1]
    return Linear(width, merge=2, kernel_init=out_init, name='out')(y_BLHK)
