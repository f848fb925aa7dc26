"""MaskGIT: Chang et al., "Masked Generative Image Transformer", 2202.04200, as Besnier et al. build it,
"Halton Scheduler for Masked Generative Image Transformer", 2503.17076.

A bidirectional transformer over tokens, some of which are hidden: these it tells from the others. The class
enters by adaLN-Zero; attention has queries and keys of unit size and no biases, the MLP is a SwiGLU, and a
few tokens stand for nothing (registers). Logits are products with the same table that embeds tokens. Tokens
of several scales are one sequence, and of a large vocabulary a code is several tokens (layers/digits.py).
"""

# B batch, N tokens, M of them with all that make up a code as one, D width, V codes of a group

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxgen.config import Count, Depth, Dtype, Part, Size, Whole
from jaxgen.layers import digits
from jaxgen.layers.attention import attention
from jaxgen.layers.dropout import dropped, layer_keys
from jaxgen.layers.embeddings import LabelEmbedding
from jaxgen.layers.linear import Linear, xavier, zeros
from jaxgen.layers.mlp import SwiGlu
from jaxgen.layers.modulation import condition, modulate, modulation, residual, rms_norm
from jaxgen.layers.segment import Segment, expose
from jaxgen.layers.stack import Stack, constrain

# Published sizes: depth, width, heads.
SIZES = {
    'tiny': (6, 384, 6),
    'small': (12, 512, 6),
    'base': (12, 768, 12),
    'large': (24, 1024, 16),
    'xlarge': (28, 1152, 16),
}
EPSILON = 1e-5
normal = nn.initializers.normal(0.02)


class UnitAttention(nn.Module):
    """Attention whose whole queries and keys have a root mean square of 1.

    Where the width does not divide into heads, these are less wide together, as in the published 'small'.
    """

    heads: int
    implementation: str | None = None

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        width = x_BLD.shape[-1]
        heads = self.heads, width // self.heads
        q, k, v = (
            Linear(math.prod(heads), use_bias=False, name=name)(x_BLD) for name in ('query', 'key', 'value')
        )
        q, k, v = (a.reshape(*a.shape[:2], *heads) for a in (_unit(q), _unit(k), v))
        q, k, v = checkpoint_name(q, 'query'), checkpoint_name(k, 'key'), checkpoint_name(v, 'value')
        y = attention(q, k, v, implementation=self.implementation)
        return Linear(width, merge=2, use_bias=False, name='out')(y)


def _unit(x: jax.Array) -> jax.Array:
    size = jnp.mean(jnp.square(x.astype(jnp.float32)), -1, keepdims=True)
    return (x * jax.lax.rsqrt(size + EPSILON)).astype(x.dtype)


class MaskGITBlock(nn.Module):
    """Attention and SwiGLU, each normalised, modulated and gated by the condition.

    Of `per_layer` it reads 'keys' [B], for what is dropped of its two halves in training.
    """

    width: int
    heads: int
    hidden: int
    dropout: float
    implementation: str | None = None

    def setup(self) -> None:
        self.modulation = Linear(6 * self.width, kernel_init=zeros)
        self.attention_norm, self.mlp_norm = rms_norm(epsilon=EPSILON), rms_norm(epsilon=EPSILON)
        self.attention = UnitAttention(self.heads, self.implementation)
        self.mlp = SwiGlu(self.hidden, self.width)

    def prepare(self, c_BD: jax.Array) -> list[jax.Array]:
        """Shift, scale and gate of both halves."""
        return modulation(self.modulation, c_BD, 6)

    def __call__(
        self,
        x_BLD: jax.Array,
        c_BD: jax.Array,
        *,
        prepared: list[jax.Array] | None = None,
        per_layer: Any = None,
        train: bool = False,
    ) -> jax.Array:
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = (
            prepared or self.prepare(c_BD)
        )
        keys_B = (per_layer or {}).get('keys')
        h = modulate(self.attention_norm(x_BLD), shift_attention, scale_attention).astype(x_BLD.dtype)
        h = dropped(self.attention(h), self.dropout, keys_B, 'attention')
        expose(self, 'attention', h)
        x_BLD = residual(x_BLD, h, gate_attention)
        h = modulate(self.mlp_norm(x_BLD), shift_mlp, scale_mlp).astype(x_BLD.dtype)
        h = dropped(self.mlp(h), self.dropout, keys_B, 'mlp')
        expose(self, 'mlp', h)
        return residual(x_BLD, h, gate_mlp)


class OfHiddenCodes(nn.Module):
    """What a network is asked for that is called with tokens [B, N] and which of them are hidden, and gives
    logits [B, N, V]. `cond` is {'label': int [B], 'drop': bool [B]}.
    """

    depth: int
    width: int
    heads: int
    hidden: int
    scales: tuple[tuple[int, int], ...]
    codes: int
    groups: int
    classes: int
    dropout: float
    dtype: Any
    attention: str | None
    scan: bool | int
    remat: str

    causal = False  # as order and objective 'masked' want it

    @property
    def vocabulary(self) -> int:
        """The number of codes that a token may be."""
        return digits.base(self.codes, self.groups)

    @property
    def places(self) -> int:
        """The number of codes."""
        return sum(rows * columns for rows, columns in self.scales)

    def blank(self, x: Any, t: Any, cond: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, Any]:
        """What the network is initialised with."""
        shape = (len(cond['label']), self.places * self.groups)
        return jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool), cond

    def drops(self, keys_B: jax.Array) -> dict[str, jax.Array]:
        """`per_layer` of a training step: the keys by which outputs are dropped."""
        return {'keys': layer_keys(keys_B, self.depth)} if self.dropout else {}

    def by_groups(self, x_BN: jax.Array) -> jax.Array:
        """Tokens side by side that make up a code, [B, M, G]."""
        if x_BN.shape[1] != self.places * self.groups:
            raise ValueError(
                f'{x_BN.shape[1]} tokens are given, and this network is of {self.places} codes of '
                f'{self.groups} tokens each.'
            )
        return x_BN.reshape(len(x_BN), self.places, self.groups)


class MaskGIT(OfHiddenCodes):
    """The network, with `registers` tokens of its own."""

    registers: int

    @nn.compact
    def __call__(
        self,
        x_BN: jax.Array,
        t_BN: jax.Array,
        cond: dict[str, jax.Array],
        *,
        memory: Any = None,
        per_layer: Any = None,
        capture: tuple[str, ...] = (),
        train: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        label_BD = LabelEmbedding(self.classes, self.width, name='label')(cond['label'], cond['drop'])
        c_BD = condition(label_BD, self.dtype)
        table = self.param('table', normal, (self.groups * (self.vocabulary + 1), self.width))
        x_BMD = self._embedded(table, x_BN, t_BN).astype(self.dtype)
        if self.registers:
            # Behind the others, so that tokens which divide over a mesh still do.
            extra = self.param('registers', normal, (self.registers, self.width)).astype(self.dtype)
            extra = jnp.broadcast_to(extra, (len(x_BMD), *extra.shape))
            x_BMD = jnp.concatenate([x_BMD, extra], axis=1)
        block = MaskGITBlock(self.width, self.heads, self.hidden, self.dropout, self.attention, parent=None)
        stack = Stack((Segment(block, self.depth),), self.scan, self.remat, name='blocks')
        x_BMD, features, memory = stack(
            x_BMD, c_BD, memory=memory, per_layer=per_layer, capture=capture, train=train
        )
        return self._logits(table, x_BMD[:, : self.places], c_BD), features, memory

    def _embedded(self, table: jax.Array, x_BN: jax.Array, t_BN: jax.Array) -> jax.Array:
        """A vector for each code, the sum of its tokens', and for its place."""
        rows = self.by_groups(jnp.where(t_BN, self.vocabulary, x_BN))
        rows = rows + jnp.arange(self.groups) * (self.vocabulary + 1)
        embedded = jnp.take(table, rows, axis=0, mode='fill').sum(2)
        return embedded + self.param('position', normal, (self.places, self.width))

    def _logits(self, table: jax.Array, x_BMD: jax.Array, c_BD: jax.Array) -> jax.Array:
        """For every token, of all codes; published tables have a row for what is hidden too."""
        shift, scale = modulation(Linear(2 * self.width, kernel_init=xavier, name='final'), c_BD, 2)
        norm = rms_norm(epsilon=EPSILON, name='final_norm')
        offset = self.param('final_offset', nn.initializers.zeros, (self.width,))
        h = modulate(norm(x_BMD) + offset, shift, scale).astype(self.dtype)
        bias = self.param('bias', nn.initializers.zeros, (len(table),))
        logits = jnp.einsum('bmd,vd->bmv', h, table.astype(self.dtype)).astype(jnp.float32) + bias
        logits = constrain(logits).reshape(len(h), -1, self.groups, self.vocabulary + 1)
        return logits[..., :-1].reshape(len(h), -1, self.vocabulary)


def build(
    scales: tuple[tuple[Size, Size], ...] = ((16, 16),),
    codes: Count = 16_384,
    groups: Size = 1,
    classes: Count = 1000,
    size: str = 'base',
    registers: Whole = 1,
    dropout: Part = 0.0,
    multiple: Size = 256,
    dtype: Dtype = 'float32',
    attention: str | None = None,
    scan: bool | Count = True,
    remat: str = 'none',
    hidden: Size | None = None,
    depth: Depth | None = None,
    heads: Size | None = None,
) -> MaskGIT:
    """A MaskGIT of a published size; hidden, depth and heads override it. `dtype` is what it computes in.

    groups: as how many tokens a code is told. The MLP is 8/3 times as wide as the rest, up to the next
    `multiple`. dropout: what is left out of both halves of a layer in training, published 0.1.
    """
    if size not in SIZES:
        raise ValueError(f'MaskGIT has no size {size!r}; choose from {sorted(SIZES)}')
    digits.base(codes, groups)  # refuses groups that do not fit
    size_depth, size_hidden, size_heads = SIZES[size]
    width = hidden or size_hidden
    return MaskGIT(
        depth=depth or size_depth,
        width=width,
        heads=heads or size_heads,
        hidden=-(-(8 * width // 3) // multiple) * multiple,
        scales=tuple(map(tuple, scales)),
        codes=codes,
        groups=groups,
        classes=classes,
        registers=registers,
        dropout=dropout,
        dtype=jnp.dtype(dtype),
        attention=attention,
        scan=scan,
        remat=remat,
    )
