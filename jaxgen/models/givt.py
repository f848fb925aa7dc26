"""GIVT: Tschannen et al., "GIVT: Generative Infinite-Vocabulary Transformers", 2312.02116.

A transformer over tokens that are vectors of reals, the latents of a continuous autoencoder: they go in by a
linear layer instead of a table, and what comes out are mixtures of Gaussians instead of logits. Causal, one
token after another, or masked, told which tokens are hidden, half of each input being a vector for that. The
class is a token before all others. Keys and values of earlier tokens can be kept in a cache.
"""

# B batch, N tokens, M of some, D width, H heads, K width of a head, C channels of a token

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxgen.config import Count, Depth, Dtype, Part, Size
from jaxgen.layers import cache
from jaxgen.layers.attention import attention, head_shape
from jaxgen.layers.dropout import dropped, layer_keys
from jaxgen.layers.embeddings import LabelEmbedding
from jaxgen.layers.linear import Linear
from jaxgen.layers.mlp import Mlp
from jaxgen.layers.modulation import layer_norm, residual
from jaxgen.layers.segment import Segment
from jaxgen.layers.stack import Stack, constrain

# Depth, width, heads and width inside the MLP of the published sizes.
SIZES = {'base': (12, 768, 12, 3072), 'default': (24, 1024, 16, 4096), 'large': (48, 1536, 16, 8192)}
HIDDEN, SEEN, REPLACED = range(3)  # vectors that say of a place what it is, and stand for what is hidden
lecun = nn.initializers.lecun_normal()


class CachedAttention(nn.Module):
    """Attention to all tokens, or with `causal` to those before and to oneself.

    `held` of those before have keys and values in `before`, which is as long as all.
    """

    heads: int
    causal: bool
    implementation: str | None = None

    @nn.compact
    def __call__(self, x_BMD: jax.Array, held: jax.Array | None, before: Any) -> jax.Array:
        width = x_BMD.shape[-1]
        bare = {'use_bias': False, 'kernel_init': lecun}
        q, k, v = (
            checkpoint_name(Linear(head_shape(self.heads, width), name=name, **bare)(x_BMD), name)
            for name in ('query', 'key', 'value')
        )
        (k, v), mask = cache.among(self, k, v, held, before), None
        if held is not None:
            mask = (jnp.arange(k.shape[1]) <= held + jnp.arange(x_BMD.shape[1])[:, None])[None]
        causal = self.causal and held is None
        y = attention(q, k, v, mask, causal=causal, implementation=self.implementation)
        return Linear(width, merge=2, name='out', **bare)(y)


class GIVTBlock(nn.Module):
    """Attention and MLP, each of a normalised residual.

    Of `per_layer` it reads 'key' and 'value', see CachedAttention, and 'keys' [B], random ones by which
    `dropout` of what the two halves give is left out.
    """

    width: int
    heads: int
    hidden: int
    causal: bool
    dropout: float
    implementation: str | None = None

    @nn.compact
    def __call__(
        self, x_BMD: jax.Array, held: jax.Array | None, *, per_layer: Any = None, train: bool = False
    ) -> jax.Array:
        keys_B = (per_layer or {}).get('keys')
        attend = CachedAttention(self.heads, self.causal, self.implementation, name='attention')
        h = attend(_scaled('attention_norm', x_BMD), held, per_layer)
        x_BMD = residual(x_BMD, dropped(h, self.dropout, keys_B, 'attention'))
        h = Mlp(self.hidden, self.width, name='mlp')(_scaled('mlp_norm', x_BMD))
        return residual(x_BMD, dropped(h, self.dropout, keys_B, 'mlp'))


def _scaled(name: str, x_BMD: jax.Array) -> jax.Array:
    """Normalised, without a shift."""
    norm = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_fast_variance=False, dtype=x_BMD.dtype, name=name)
    return norm(x_BMD)


class GIVT(nn.Module):
    """The network: it gives of each token a mixture as autoregressive/vectors.py reads it, [B, M, k + 2 k C].

    Masked, it is called with tokens [B, N, C] and which of them are hidden, bool [B, N]. Causal, with all
    tokens and `t` None, what it gives is of every token by those before it; or `memory` (see `cache`) holds
    what was before: called first with no tokens [B, 0, C], and then with one and in `t` how many were before
    it, for the next. `cond` is {'label': int [B], 'drop': bool [B]}.
    """

    depth: int
    width: int
    heads: int
    hidden: int
    tokens: int
    channels: int
    mixtures: int
    classes: int
    causal: bool
    dropout: float
    dtype: Any
    attention: str | None
    scan: bool | int
    remat: str

    def blank(self, x: Any, t: Any, cond: dict[str, jax.Array]) -> tuple[jax.Array, Any, Any]:
        """What the network is initialised with."""
        batch = len(cond['label'])
        hidden = None if self.causal else jnp.ones((batch, self.tokens), bool)
        return jnp.zeros((batch, self.tokens, self.channels)), hidden, cond

    def cache(self, batch: int) -> dict[str, jax.Array]:
        """Room for the keys and values of all tokens that another one looks at, in every layer."""
        return cache.room(self.depth, batch, self.tokens, self.heads, self.width, self.dtype)

    def drops(self, keys_B: jax.Array) -> dict[str, jax.Array]:
        """`per_layer` of a training step: keys to draw by what is left out."""
        return {'keys': layer_keys(keys_B, self.depth)} if self.dropout else {}

    @nn.compact
    def __call__(
        self,
        x_BMC: jax.Array,
        t: jax.Array | None,
        cond: dict[str, jax.Array],
        *,
        memory: Any = None,
        per_layer: Any = None,
        capture: tuple[str, ...] = (),
        train: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        if memory is None and x_BMC.shape[1:] != (self.tokens, self.channels):
            raise ValueError(
                f'tokens of {x_BMC.shape[1:]} are given, and this network is of {self.tokens} of '
                f'{self.channels} channels.'
            )
        begins = memory is None or not x_BMC.shape[1]
        x_BMD = self._embedded(x_BMC[:, :-1] if self.causal and memory is None else x_BMC, t)
        # The causal sequence is not told its last token.
        places = (self.tokens + (not self.causal), self.width)
        position = self.param('position', nn.initializers.normal(self.width**-0.5), places)
        held = None if begins else jnp.asarray(t, jnp.int32) + 1
        if begins:
            label = LabelEmbedding(self.classes, self.width, nn.initializers.normal(1.0), name='label')
            x_BMD = jnp.concatenate([label(cond['label'], cond['drop'])[:, None], x_BMD], axis=1)
        x_BMD = x_BMD + jax.lax.dynamic_slice_in_dim(position, 0 if begins else held, x_BMD.shape[1])

        block = GIVTBlock(
            self.width, self.heads, self.hidden, self.causal, self.dropout, self.attention, parent=None
        )
        stack = Stack((Segment(block, self.depth),), self.scan, self.remat, name='blocks')
        x_BMD, features, _ = stack(
            x_BMD.astype(self.dtype),
            held,
            per_layer={**(per_layer or {}), **({} if begins else memory)},
            capture=capture if memory is None else (*capture, *cache.SITES.values()),
            train=train,
        )
        if memory is not None:
            memory = cache.kept(memory, features, 0 if begins else held)
        x_BMD = layer_norm(affine=True, dtype=self.dtype, name='norm')(x_BMD[:, 0 if self.causal else 1 :])
        # Published from zero, where all components would be and stay alike but for rounding.
        init = nn.initializers.normal(0.1 * self.width**-0.5)
        out = Linear(self.mixtures * (1 + 2 * self.channels), kernel_init=init, name='head')(x_BMD)
        return constrain(out).astype(jnp.float32), features, memory

    def _embedded(self, x_BMC: jax.Array, hidden_BM: Any) -> jax.Array:
        """Tokens; masked, half of the width says which are hidden, the other half what is seen."""
        x_BMD = Linear(self.width, kernel_init=lecun, name='token')(x_BMC.astype(jnp.float32))
        if self.causal:
            return x_BMD
        special = self.param('special', nn.initializers.normal(1.0), (3, self.width))
        hidden_BM1 = hidden_BM[..., None]
        whether = jnp.where(hidden_BM1, special[HIDDEN], special[SEEN])
        seen = jnp.where(hidden_BM1, special[REPLACED], x_BMD)
        return jnp.concatenate([whether[..., ::2], seen[..., ::2]], axis=-1)


def build(
    latent: tuple[Size, Size, Size] = (16, 16, 16),
    classes: Count = 1000,
    codes: Count | None = None,
    order: Literal['causal', 'masked'] = 'causal',
    size: str = 'default',
    mixtures: Size = 16,
    hidden: Size | None = None,
    depth: Depth | None = None,
    heads: Size | None = None,
    ff: Size | None = None,
    dropout: Part = 0.0,
    dtype: Dtype = 'float32',
    attention: str | None = None,
    scan: bool | Count = True,
    remat: str = 'none',
) -> GIVT:
    """A GIVT of a published size over latents of (rows, columns, channels); hidden, depth, heads and ff (the
    width inside the MLP) override it.

    mixtures: how many Gaussians. dropout: of what attention and MLP give in training; the authors' (0.1, 0.2
    and 0.3 by size, masked 0.4) is of attention's weights and inside the MLP too.
    """
    if codes is not None:
        raise ValueError(
            f"the tokenizer has {codes:,} codes, and model 'givt' is of vectors; take "
            "tokenizer.bottleneck.name='kl', or model.name='llamagen' or 'maskgit'."
        )
    if size not in SIZES:
        raise ValueError(f'GIVT has no size {size!r}; choose from {list(SIZES)}.')
    size_depth, size_hidden, size_heads, size_ff = SIZES[size]
    width = hidden or size_hidden
    if width % 2:
        raise ValueError(f'model.hidden is {width}; half of it says what is hidden, so it must be even.')
    return GIVT(
        depth=depth or size_depth,
        width=width,
        heads=heads or size_heads,
        hidden=ff or size_ff,
        tokens=math.prod(latent[:2]),
        channels=latent[2],
        mixtures=mixtures,
        classes=classes,
        causal=order == 'causal',
        dropout=dropout,
        dtype=jnp.dtype(dtype),
        attention=attention,
        scan=scan,
        remat=remat,
    )
