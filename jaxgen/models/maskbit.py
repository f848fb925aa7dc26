"""MaskBit: Weber et al., "Embedding-free Image Generation via Bit Tokens", 2409.16211.

A masked generator without a table of codes: tokens go in as the bits that they are, -1 and 1 (hidden ones as
zeros), and come out by groups of bits, each with a softmax of its own, so that vocabularies of 2^18 fit. Each
group of a code may be hidden by itself. The transformer is BERT's, normalised after every half, as in MaskGIT
(Chang et al., 2202.04200); with a table instead of bits, which its head then shares, it is that of MaskGIT
as these authors train it for comparison.
"""

# B batch, N tokens, M codes and behind them the class, G groups, D width, V codes of a group

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.config import Count, Depth, Dtype, Part, Size
from jaxgen.layers import digits
from jaxgen.layers.attention import SelfAttention
from jaxgen.layers.dropout import dropped
from jaxgen.layers.embeddings import LabelEmbedding
from jaxgen.layers.linear import Linear
from jaxgen.layers.mlp import Mlp
from jaxgen.layers.modulation import layer_norm, residual
from jaxgen.layers.segment import Segment, expose
from jaxgen.layers.stack import Stack, constrain
from jaxgen.models.maskgit import OfHiddenCodes

EPSILON = 1e-12
normal = nn.initializers.truncated_normal(0.02)


class MaskBitBlock(nn.Module):
    """Attention and MLP, each added to what goes into it and then normalised.

    Of `per_layer` it reads 'keys' [B], for what is dropped of its two halves in training.
    """

    heads: int
    hidden: int
    dropout: float
    implementation: str | None = None

    @nn.compact
    def __call__(self, x_BMD: jax.Array, *, per_layer: Any = None, train: bool = False) -> jax.Array:
        keys_B = (per_layer or {}).get('keys')
        h = SelfAttention(self.heads, implementation=self.implementation, name='attention')(x_BMD)
        h = dropped(h, self.dropout, keys_B, 'attention')
        expose(self, 'attention', h)
        x_BMD = _norm('attention_norm', residual(x_BMD, h))
        h = Mlp(self.hidden, x_BMD.shape[-1], 'erf', kernel_init=normal, name='mlp')(x_BMD)
        h = dropped(h, self.dropout, keys_B, 'mlp')
        expose(self, 'mlp', h)
        return _norm('mlp_norm', residual(x_BMD, h))


def _norm(name: str, x_BMD: jax.Array) -> jax.Array:
    return layer_norm(affine=True, epsilon=EPSILON, dtype=x_BMD.dtype, name=name)(x_BMD)


class MaskBit(OfHiddenCodes):
    """The network; with `bits` a token is what its bits are, else it has a table."""

    bits: bool

    def setup(self) -> None:
        self.label = LabelEmbedding(self.classes, self.width)
        self.position = self.param('position', normal, (self.places + 1, self.width))
        if self.bits:
            self.told = Linear(self.width, kernel_init=normal)
            self.head = Linear(self.groups * self.vocabulary, kernel_init=normal)
        else:
            shape = (self.vocabulary + 1, self.width)
            self.tables = [self.param(f'table_{g}', normal, shape) for g in range(self.groups)]
            shape = (self.places, self.vocabulary)
            zeros = nn.initializers.zeros
            self.biases = [self.param(f'bias_{g}', zeros, shape) for g in range(self.groups)]
        self.first_norm, self.last_norm = (
            layer_norm(affine=True, epsilon=EPSILON, dtype=self.dtype) for _ in range(2)
        )
        block = MaskBitBlock(self.heads, self.hidden, self.dropout, self.attention, parent=None)
        self.blocks = Stack((Segment(block, self.depth),), self.scan, self.remat)
        self.last = Linear(self.width, kernel_init=normal)

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
        label_BD = self.label(cond['label'], cond['drop'])
        x_BMD = jnp.concatenate([self._embedded(x_BN, t_BN), label_BD[:, None]], axis=1) + self.position
        x_BMD = self.first_norm(x_BMD.astype(self.dtype))
        x_BMD, features, memory = self.blocks(
            x_BMD, memory=memory, per_layer=per_layer, capture=capture, train=train
        )
        return self._logits(x_BMD[:, :-1]), features, memory

    def _embedded(self, x_BN: jax.Array, t_BN: jax.Array) -> jax.Array:
        """A vector for each code: of its bits, or the sum of its groups' rows."""
        x_BMG, t_BMG = map(self.by_groups, (x_BN, t_BN))
        if not self.bits:
            rows = jnp.where(t_BMG, self.vocabulary, x_BMG)
            return sum(jnp.take(t, rows[..., g], axis=0, mode='fill') for g, t in enumerate(self.tables))
        ones = x_BMG[..., None] >> np.arange(int(math.log2(self.vocabulary))) & 1
        signs = jnp.where(t_BMG[..., None], 0, 2.0 * ones - 1)
        return self.told(signs.reshape(*signs.shape[:2], -1))

    def _logits(self, x_BMD: jax.Array) -> jax.Array:
        """For every token, of the codes that it may be."""
        h = self.last_norm(jax.nn.gelu(self.last(x_BMD), approximate=False))
        if self.bits:
            logits = constrain(self.head(h)).astype(jnp.float32)
        else:
            parts = (jnp.einsum('bmd,vd->bmv', h, t[:-1].astype(h.dtype)) for t in self.tables)
            parts = (part.astype(jnp.float32) + bias for part, bias in zip(parts, self.biases))
            logits = constrain(jnp.concatenate(list(parts), axis=-1))
        return logits.reshape(len(h), -1, self.vocabulary)


def build(
    scales: tuple[tuple[Size, Size], ...] = ((16, 16),),
    codes: Count = 2**14,
    groups: Size = 2,
    bits: bool = True,
    classes: Count = 1000,
    depth: Depth = 24,
    hidden: Size = 1024,
    heads: Size = 16,
    dropout: Part = 0.0,
    dtype: Dtype = 'float32',
    attention: str | None = None,
    scan: bool | Count = True,
    remat: str = 'none',
) -> MaskBit:
    """A MaskBit; the defaults are the published ones of 14 bits.

    groups: as how many tokens a code is told. Without `bits` tokens have a table; 24 layers of 768 with 8
    heads and 1,024 codes are the authors' MaskGIT. dropout: what is left out of both halves of a layer in
    training, published 0.1.
    """
    if bits and 2 ** int(math.log2(digits.base(codes, groups))) != digits.base(codes, groups):
        raise ValueError(
            f'model.bits is for codes of bits, and of {codes:,} codes in {groups} groups each is one of '
            f'{digits.base(codes, groups)}; set model.bits=False.'
        )
    return MaskBit(
        depth=depth,
        width=hidden,
        heads=heads,
        hidden=4 * hidden,
        scales=tuple(map(tuple, scales)),
        codes=codes,
        groups=groups,
        bits=bits,
        classes=classes,
        dropout=dropout,
        dtype=jnp.dtype(dtype),
        attention=attention,
        scan=scan,
        remat=remat,
    )
