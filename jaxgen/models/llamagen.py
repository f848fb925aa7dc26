"""LlamaGen: Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation",
2406.06525.

A language model's transformer over an image's codes, one after another: causal attention with rotary
positions of rows and columns, SwiGLU, RMSNorm, no biases. What is asked for comes first, a class as one
token or a caption as many. Keys and values of earlier tokens can be kept in a cache. Codes of several scales
(the authors have one) get an embedding of their scale and positions by where their cells lie in the last.
"""

# B batch, N tokens of all scales, M of some, P of the prefix, D width, H heads, K width of a head, W of text

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxgen.config import Count, Depth, Dtype, Part, Size
from jaxgen.layers import cache
from jaxgen.layers.attention import attention, head_shape
from jaxgen.layers.dropout import dropped, layer_keys
from jaxgen.layers.embeddings import LabelEmbedding
from jaxgen.layers.linear import Linear
from jaxgen.layers.mlp import Mlp, SwiGlu
from jaxgen.layers.modulation import residual, rms_norm
from jaxgen.layers.rope import rope_scales, rotate
from jaxgen.layers.segment import Segment
from jaxgen.layers.stack import Stack, constrain

# Depth, width and heads of the published sizes.
SIZES = {
    'B': (12, 768, 12),
    'L': (24, 1024, 16),
    'XL': (36, 1280, 20),
    'XXL': (48, 1536, 24),
    'XXXL': (48, 2560, 40),
    '1B': (22, 2048, 32),
    '3B': (24, 3200, 32),
    '7B': (32, 4096, 32),
}
EPSILON = 1e-5
_init = nn.initializers.normal(0.02)


@flax.struct.dataclass
class Where:
    """Where the tokens of a call stand.

    angles: of their rotation, [M, K / 2]. factor: of their queries and keys, [M]. mask: which keys each sees,
    [B or 1, M, keys], None is all before it. held: how many keys lie in the cache before them, if any.
    """

    angles: jax.Array
    factor: jax.Array | None
    mask: jax.Array | None
    held: jax.Array | None


class CausalAttention(nn.Module):
    """Attention to the tokens before, which may have keys and values in `before`, and to oneself."""

    heads: int
    implementation: str | None = None

    @nn.compact
    def __call__(self, x_BMD: jax.Array, where: Where, before: Any) -> jax.Array:
        width = x_BMD.shape[-1]
        heads = head_shape(self.heads, width)
        q, k, v = (
            Linear(heads, use_bias=False, kernel_init=_init, name=name)(x_BMD)
            for name in ('query', 'key', 'value')
        )
        q, k = (rotate(each, where.angles) for each in (q, k))
        if where.factor is not None:
            q, k = (each * where.factor[:, None, None].astype(each.dtype) for each in (q, k))
        q, k, v = (checkpoint_name(each, name) for each, name in ((q, 'query'), (k, 'key'), (v, 'value')))
        k, v = cache.among(self, k, v, where.held, before)
        causal = where.mask is None
        y = attention(q, k, v, where.mask, causal=causal, implementation=self.implementation)
        return Linear(width, merge=2, use_bias=False, kernel_init=_init, name='out')(y)


class LlamaBlock(nn.Module):
    """Attention and SwiGLU, each of a normalised residual.

    Of `per_layer` it reads 'key' and 'value', see CausalAttention, and 'keys' [B], random ones by which
    `dropout` of what the two halves give is left out.
    """

    width: int
    heads: int
    hidden: int
    dropout: float
    implementation: str | None = None

    @nn.compact
    def __call__(
        self, x_BMD: jax.Array, where: Where, *, per_layer: Any = None, train: bool = False
    ) -> jax.Array:
        keys_B = (per_layer or {}).get('keys')
        attend = CausalAttention(self.heads, self.implementation, name='attention')
        mlp = SwiGlu(self.hidden, self.width, kernel_init=_init, out_init=_init, name='mlp')
        h = attend(_norm('attention_norm', x_BMD), where, per_layer)
        x_BMD = residual(x_BMD, dropped(h, self.dropout, keys_B, 'attention'))
        h = mlp(_norm('mlp_norm', x_BMD))
        return residual(x_BMD, dropped(h, self.dropout, keys_B, 'mlp'))


def _norm(name: str, x_BMD: jax.Array) -> jax.Array:
    return rms_norm(epsilon=EPSILON, dtype=x_BMD.dtype, name=name)(x_BMD)


class LlamaGen(nn.Module):
    """The network: it gives logits [B, M, codes] of which code comes next.

    Called with all codes [B, N] and `t` None, these are of every code by those before it. Or `memory` (see
    `cache`) holds what was before and comes back with this call's: called first with no codes [B, 0] it takes
    in the condition and gives logits of the first one, then with one code [B, 1] and in `t` how many were
    before it, those of the next. `cond` is 'drop': bool [B], with 'label': int [B], or with 'text' [B, P, W]
    and 'text_mask': bool [B, P].
    """

    depth: int
    width: int
    heads: int
    hidden: int
    scales: tuple[tuple[int, int], ...]
    codes: int
    classes: int
    caption_width: int | None
    caption_length: int
    open_prefix: bool
    dropout: float
    token_dropout: float
    dtype: Any
    attention: str | None
    scan: bool | int
    remat: str

    causal = True  # as order 'raster' and objective 'next_token' want it

    @property
    def lengths(self) -> tuple[int, ...]:
        """Codes of each scale."""
        return tuple(rows * columns for rows, columns in self.scales)

    @property
    def prefix(self) -> int:
        """Tokens before the first code."""
        return self.caption_length if self.caption_width else 1

    def blank(self, x: Any, t: Any, cond: dict[str, jax.Array]) -> tuple[jax.Array, None, Any]:
        """What the network is initialised with."""
        return jnp.zeros((len(cond['drop']), sum(self.lengths)), jnp.int32), None, cond

    def cache(self, batch: int) -> dict[str, jax.Array]:
        """Room for the keys and values of all tokens that another one looks at, in every layer."""
        tokens = self.prefix + sum(self.lengths) - 1
        return cache.room(self.depth, batch, tokens, self.heads, self.width, self.dtype)

    def drops(self, keys_B: jax.Array) -> dict[str, jax.Array]:
        """`per_layer` of a training step: keys to draw by what is left out."""
        if not (self.dropout or self.token_dropout):
            return {}
        return {'keys': layer_keys(keys_B, self.depth)}

    @nn.compact
    def __call__(
        self,
        x_BM: jax.Array,
        t: jax.Array | None,
        cond: dict[str, jax.Array],
        *,
        memory: Any = None,
        per_layer: Any = None,
        capture: tuple[str, ...] = (),
        train: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        begins, per_layer = memory is None or not x_BM.shape[1], per_layer or {}
        text_mask_BP = _moved(cond['text_mask'], cond['text_mask']) if self.caption_width else None
        x_BMD = self._embedded(x_BM[:, :-1] if memory is None else x_BM, 0 if begins else t)
        if begins:
            x_BMD = jnp.concatenate([self._prefix(cond), x_BMD], axis=1)
        if 'keys' in per_layer:
            x_BMD = dropped(x_BMD, self.token_dropout, per_layer['keys'][0], 'tokens')

        where = self._where(None if begins else t, x_BMD.shape[1], text_mask_BP)
        block = LlamaBlock(self.width, self.heads, self.hidden, self.dropout, self.attention, parent=None)
        stack = Stack((Segment(block, self.depth),), self.scan, self.remat, name='blocks')
        x_BMD, features, _ = stack(
            x_BMD.astype(self.dtype),
            where,
            per_layer={**per_layer, **({} if begins else memory)},
            capture=capture if memory is None else (*capture, *cache.SITES.values()),
            train=train,
        )
        if memory is not None:
            memory = cache.kept(memory, features, 0 if begins else where.held)
        x_BMD = _norm('norm', x_BMD[:, self.prefix - 1 :] if begins else x_BMD)
        head = Linear(self.codes, use_bias=False, kernel_init=nn.initializers.zeros, name='head')
        return constrain(head(x_BMD)).astype(jnp.float32), features, memory

    def _embedded(self, x_BM: jax.Array, t: Any) -> jax.Array:
        """Codes as tokens, the first of them after t others."""
        table = self.param('token', _init, (self.codes, self.width))
        x_BMD = jnp.take(table, x_BM, axis=0, mode='fill')
        if len(self.scales) == 1:
            return x_BMD
        level = self.param('level', _init, (len(self.scales), self.width))
        levels = jnp.asarray(np.repeat(np.arange(len(self.scales)), self.lengths))
        return x_BMD + jnp.take(level, jax.lax.dynamic_slice_in_dim(levels, t, x_BM.shape[1]), axis=0)

    def _prefix(self, cond: dict[str, jax.Array]) -> jax.Array:
        """What is asked for, as tokens [B, P, D]; a caption's come last, after its padding."""
        if not self.caption_width:
            return LabelEmbedding(self.classes, self.width, name='label')(cond['label'], cond['drop'])[
                :, None
            ]
        text_BPW, wanted = cond['text'], (self.caption_length, self.caption_width)
        if text_BPW.shape[1:] != wanted:
            raise ValueError(
                f'text is {list(text_BPW.shape[1:])} and the network takes {list(wanted)}; set caption_length'
                " and caption_width to the text encoder's"
            )
        null = self.param('null_text', nn.initializers.normal(self.caption_width**-0.5), wanted)
        text_BPW = _moved(jnp.where(cond['text_mask'][..., None], text_BPW, 0), cond['text_mask'])
        text_BPW = jnp.where(cond['drop'][:, None, None], null.astype(text_BPW.dtype), text_BPW)
        caption = Mlp(self.width, self.width, kernel_init=_init, use_bias=False, name='caption')
        return caption(text_BPW.astype(self.dtype))

    def _where(self, t: Any, tokens: int, text_mask_BP: jax.Array | None) -> Where:
        """Of the first tokens, prefix and all, or of one after t others."""
        angles = rope_scales(self.scales, self.width // self.heads)
        if t is not None:
            held = self.prefix + jnp.asarray(t, jnp.int32)
            seen_B1M = (jnp.arange(self.prefix + len(angles) - 1) <= held)[None, None]
            if text_mask_BP is not None:
                rest = jnp.ones((len(text_mask_BP), seen_B1M.shape[2] - self.prefix), bool)
                seen_B1M = seen_B1M & jnp.concatenate([text_mask_BP, rest], axis=1)[:, None]
            own = jax.lax.dynamic_slice_in_dim(jnp.asarray(angles), t, tokens)
            return Where(own, None, seen_B1M, held)
        angles = np.concatenate([np.zeros((self.prefix, angles.shape[1]), np.float32), angles])[:tokens]
        # As published the prefix has no query and no key: what it says is read without choice.
        factor = None if self.open_prefix else jnp.asarray(np.arange(tokens) >= self.prefix)
        if text_mask_BP is None:
            return Where(jnp.asarray(angles), factor, None, None)
        rest = jnp.ones((len(text_mask_BP), tokens - self.prefix), bool)
        keys_BM = jnp.concatenate([text_mask_BP, rest], axis=1)
        seen_BMM = np.tri(tokens, dtype=bool) & (keys_BM[:, None] | np.eye(tokens, dtype=bool))
        return Where(jnp.asarray(angles), factor, seen_BMM, None)


def _moved(x: jax.Array, mask_BP: jax.Array) -> jax.Array:
    """Real tokens [B, P, ...] at the end, where they stood at the beginning."""
    length = mask_BP.shape[1]
    index_BP = (np.arange(length) + mask_BP.sum(axis=1, keepdims=True)) % length
    return jnp.take_along_axis(x, index_BP.reshape(*index_BP.shape, *[1] * (x.ndim - 2)), axis=1)


def build(
    scales: tuple[tuple[Size, Size], ...] = ((16, 16),),
    codes: Count = 16384,
    classes: Count = 1000,
    caption_width: Size | None = None,
    caption_length: Size = 120,
    size: str = 'B',
    hidden: Size | None = None,
    depth: Depth | None = None,
    heads: Size | None = None,
    ff: Size | None = None,
    open_prefix: bool = False,
    dropout: Part = 0.1,
    token_dropout: Part = 0.1,
    dtype: Dtype = 'float32',
    attention: str | None = None,
    scan: bool | Count = True,
    remat: str = 'none',
) -> LlamaGen:
    """A LlamaGen of a given size; hidden, depth, heads and ff (the width inside SwiGLU) override it.

    It is told captions where a `caption_width` is given, else classes. `open_prefix`: what is asked for has
    queries and keys like any token; as published they are zero, so that all tokens of a caption weigh the
    same. `dropout` is of what attention and SwiGLU give, `token_dropout` of what goes in.
    """
    if size not in SIZES:
        raise ValueError(f'LlamaGen has no size {size!r}; choose from {list(SIZES)}')
    size_depth, size_hidden, size_heads = SIZES[size]
    hidden, heads = hidden or size_hidden, heads or size_heads
    if hidden % (4 * heads):
        raise ValueError(
            f'a width of {hidden} and {heads} heads: each head has a half for rows and one for columns, of '
            'pairs, so 4 x heads must divide the width'
        )
    return LlamaGen(
        depth=depth or size_depth,
        width=hidden,
        heads=heads,
        hidden=ff or 256 * math.ceil(8 * hidden // 3 / 256),
        scales=tuple(map(tuple, scales)),
        codes=codes,
        classes=classes,
        caption_width=caption_width,
        caption_length=caption_length,
        open_prefix=open_prefix,
        dropout=dropout,
        token_dropout=token_dropout,
        dtype=jnp.dtype(dtype),
        attention=attention,
        scan=scan,
        remat=remat,
    )
