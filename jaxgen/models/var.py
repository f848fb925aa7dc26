"""VAR: Tian et al., "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction",
2404.02905.

A GPT-2-like transformer over the token maps of a multi-scale tokenizer, coarse to fine. A scale's tokens are
predicted together: each sees its own scale and all before it, and is told what these make up, resized to its
grid. The class is the first token and, by adaLN, in every layer; queries and keys have unit length and a
learned temperature a head. Keys and values of earlier scales can be kept in a cache.
"""

# B batch, N tokens of all scales, M of some, D width, H heads, K width of a head, C channels of a code

import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxgen import keys as random
from jaxgen.config import Count, Depth, Dtype, Part, Positive, Size
from jaxgen.layers import cache
from jaxgen.layers.attention import attention, head_shape
from jaxgen.layers.embeddings import LabelEmbedding
from jaxgen.layers.linear import Initializer, Linear
from jaxgen.layers.mlp import Mlp
from jaxgen.layers.modulation import condition, layer_norm, modulate, modulation, residual
from jaxgen.layers.segment import Segment, expose
from jaxgen.layers.stack import Stack, constrain

# The sides of the published token maps, at 256 and 512 px.
SIDES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
# The initial factor of what modulates, but for gates.
REST = 0.5
HOTTEST = math.log(100)  # the learned temperature of attention stays below


def squares(sides: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Square token maps, (rows, columns) each."""
    return tuple((side, side) for side in sides)


def offsets(scales: tuple[tuple[int, int], ...]) -> list[int]:
    """Where each scale's tokens begin among all of them, and last their number."""
    return [0, *itertools.accumulate(rows * columns for rows, columns in scales)]


def normal(deviation: float) -> Initializer:
    """Of the initial parameters everywhere."""
    return nn.initializers.normal(deviation)


def by_part(deviation: float, width: int, factors: tuple[float, ...]) -> Initializer:
    """Normal, with a factor for each of the gates, scales and shifts along the output."""
    repeated = np.repeat(factors, width).astype(np.float32)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return deviation * repeated * jax.random.normal(key, shape, dtype)

    return init


class ScaleAttention(nn.Module):
    """Attention over the scales so far, the first `held` tokens of which have keys and values in `cache`.

    Or inside each scale alone, of so many tokens as `inside` says.
    """

    heads: int
    unit_norm: bool
    held: int
    deviation: float
    out_deviation: float
    implementation: str | None = None
    inside: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x_BMD: jax.Array, mask: jax.Array | None, before: Any) -> jax.Array:
        width = x_BMD.shape[-1]
        heads, init = head_shape(self.heads, width), normal(self.deviation)
        q = Linear(heads, kernel_init=init, name='query')(x_BMD)
        k = Linear(heads, kernel_init=init, use_bias=False, name='key')(x_BMD)
        v = Linear(heads, kernel_init=init, name='value')(x_BMD)
        if self.unit_norm:
            warmth = self.param('warmth', nn.initializers.constant(math.log(4)), (self.heads,))
            scale_H1 = jnp.exp(jnp.minimum(warmth, HOTTEST))[:, None]
            q, k = _unit(q) * (scale_H1 * math.sqrt(heads[1])), _unit(k)
        else:
            q = q * 0.25
        q = checkpoint_name(q.astype(x_BMD.dtype), 'query')
        k, v = checkpoint_name(k.astype(x_BMD.dtype), 'key'), checkpoint_name(v, 'value')
        expose(self, 'key', k)
        expose(self, 'value', v)
        if self.held:
            k, v = (
                jnp.concatenate([before[name][:, : self.held], new], axis=1)
                for name, new in (('key', k), ('value', v))
            )
        if self.inside:
            ends = np.cumsum(self.inside)[:-1]
            scales = zip(*(jnp.split(each, ends, axis=1) for each in (q, k, v)))
            parts = [attention(*scale, implementation=self.implementation) for scale in scales]
            y = jnp.concatenate(parts, axis=1)
        else:
            y = attention(q, k, v, mask, implementation=self.implementation)
        return Linear(width, merge=2, kernel_init=normal(self.out_deviation), name='out')(y)


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length 1, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, -1, keepdims=True), 1e-24))


class VARBlock(nn.Module):
    """Attention and MLP, each normalised, modulated and gated by the condition.

    Of `per_layer` it reads 'key' and 'value', see ScaleAttention, and 'branches' [B, 2], by which its two
    halves are multiplied (stochastic depth). With `shared`, the condition is modulations already, made for
    all layers, to which this one adds its own.
    """

    width: int
    depth: int
    heads: int
    unit_norm: bool
    shared: bool
    gate: float
    held: int
    implementation: str | None = None

    def setup(self) -> None:
        deviation = math.sqrt(1 / 3 / self.width)
        out_deviation = deviation / math.sqrt(2 * self.depth)
        factors = (*[self.gate] * 2, *[REST] * 4)
        if self.shared:
            init = by_part(self.width**-0.5, self.width, factors)
            self.modulation = self.param('modulation', init, (6 * self.width,))
        else:
            init = by_part(deviation, self.width, factors)
            self.modulation = Linear(6 * self.width, kernel_init=init)
        self.attention_norm, self.mlp_norm = layer_norm(affine=False), layer_norm(affine=False)
        self.attention = ScaleAttention(
            self.heads, self.unit_norm, self.held, deviation, out_deviation, self.implementation
        )
        self.mlp = Mlp(4 * self.width, self.width, kernel_init=normal(deviation))

    def prepare(self, c_BD: jax.Array, mask: jax.Array | None) -> list[jax.Array]:
        """Gates, scales and shifts of both halves."""
        if self.shared:
            return jnp.split((c_BD + self.modulation.astype(c_BD.dtype))[:, None], 6, axis=-1)
        return modulation(self.modulation, c_BD, 6)

    def __call__(
        self,
        x_BMD: jax.Array,
        c_BD: jax.Array,
        mask: jax.Array | None,
        *,
        prepared: list[jax.Array] | None = None,
        per_layer: Any = None,
        train: bool = False,
    ) -> jax.Array:
        gate_attention, gate_mlp, scale_attention, scale_mlp, shift_attention, shift_mlp = (
            prepared or self.prepare(c_BD, mask)
        )
        if per_layer and 'branches' in per_layer:
            branches = per_layer['branches'].astype(gate_mlp.dtype)[..., None, None]
            gate_attention, gate_mlp = gate_attention * branches[:, 0], gate_mlp * branches[:, 1]
        h = modulate(self.attention_norm(x_BMD), shift_attention, scale_attention).astype(x_BMD.dtype)
        x_BMD = residual(x_BMD, self.attention(h, mask, per_layer), gate_attention)
        h = modulate(self.mlp_norm(x_BMD), shift_mlp, scale_mlp).astype(x_BMD.dtype)
        return residual(x_BMD, self.mlp(h), gate_mlp)


class VAR(nn.Module):
    """The network: called with what each token is told, it gives logits [B, M, codes] of which code it is.

    `x` [B, M', C] tells of the scales after the first, and `t` is None: the logits are of all scales so far.
    Or `t` is the number of one scale, `x` tells of it alone, and `memory` (see `cache`) holds those before:
    it comes back with this one. `cond` is {'label': int [B], 'drop': bool [B]}.
    """

    depth: int
    width: int
    heads: int
    scales: tuple[tuple[int, int], ...]
    codes: int
    channels: int
    classes: int
    shared: bool
    gate: float
    unit_norm: bool
    drop_path: float
    dtype: Any
    attention: str | None
    scan: bool | int
    remat: str

    scalewise = True  # tokens are predicted scale after scale, those of one together
    branches = 2  # what of a layer may be left out in training
    sites = {'key': 'attention/key', 'value': 'attention/value'}  # where a layer tells what it keeps

    def blank(self, x: Any, t: Any, cond: dict[str, jax.Array]) -> tuple[jax.Array, None, Any]:
        """What the network is initialised with."""
        ends = offsets(self.scales)
        return jnp.zeros((len(cond['label']), ends[-1] - ends[1], self.channels)), None, cond

    def cache(self, batch: int) -> dict[str, jax.Array]:
        """Room for the keys and values of every token in every layer."""
        return cache.room(self.depth, batch, offsets(self.scales)[-1], self.heads, self.width, self.dtype)

    def drops(self, keys_B: jax.Array) -> dict[str, jax.Array]:
        """`per_layer` of a training step: which halves of layers are left out, the more often the later."""
        if not self.drop_path:
            return {}
        kept = 1 - np.linspace(0, self.drop_path, self.depth, dtype=np.float32)[:, None, None]
        shape = (self.depth, self.branches)
        chance = jnp.moveaxis(random.draw(jax.random.uniform, keys_B, shape), 1, 0)
        return {'branches': (chance < kept) / kept}

    def places(self, levels: np.ndarray) -> jax.Array:
        """What says where a token is, [N, D], of the scales that tokens are of."""
        init = normal(math.sqrt(1 / 3 / self.width))
        position = self.param('position', init, (len(levels), self.width))
        return position + self.param('level', init, (len(self.scales), self.width))[levels]

    def block(self, held: int, lengths: tuple[int, ...]) -> nn.Module:
        """A layer for scales of these lengths, where so many tokens before them are in memory."""
        return VARBlock(
            self.width,
            self.depth,
            self.heads,
            self.unit_norm,
            self.shared,
            self.gate,
            held,
            self.attention,
            parent=None,
        )

    def mask(self, levels: np.ndarray) -> jax.Array | None:
        """Which tokens of these levels see which, where all scales are there at once."""
        return jnp.asarray(levels[None, :, None] >= levels[None, None, :])

    def remembered(self, memory: Any, new: Any, held: int) -> Any:
        """The memory with what the layers keep of the tokens after the first `held`."""
        return {
            name: jax.lax.dynamic_update_slice_in_dim(memory[name], new[name], held, axis=2) for name in new
        }

    @nn.compact
    def __call__(
        self,
        x_BMC: jax.Array | None,
        t: int | None,
        cond: dict[str, jax.Array],
        *,
        memory: Any = None,
        per_layer: Any = None,
        capture: tuple[str, ...] = (),
        train: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        ends, deviation = offsets(self.scales), math.sqrt(1 / 3 / self.width)
        label_BD = LabelEmbedding(self.classes, self.width, name='label')(cond['label'], cond['drop'])
        start = 0 if t is None else ends[t]
        x_BMD = self._tokens(x_BMC, label_BD, t, deviation)
        stop = start + x_BMD.shape[1]
        if stop not in ends:
            raise ValueError(f'{stop} tokens are no whole number of scales; these end at {ends[1:]}')
        levels = np.repeat(np.arange(len(self.scales)), np.diff(ends))
        x_BMD = (x_BMD + self.places(levels)[start:stop]).astype(self.dtype)

        c_BD = shared_BD = condition(label_BD, self.dtype)
        if self.shared:
            kernel_init = normal(deviation)
            shared_BD = Linear(6 * self.width, kernel_init=kernel_init, name='modulation')(c_BD)
        lengths = tuple(int(count) for count in np.bincount(levels[start:stop]) if count)
        segment = Segment(self.block(start, lengths), self.depth)
        stack = Stack((segment,), self.scan, self.remat, name='blocks')
        sites = {name: f'*.{self.sites[name]}' for name in memory or ()}
        x_BMD, features, _ = stack(
            x_BMD,
            shared_BD,
            self.mask(levels[start:stop]) if t is None else None,
            per_layer={**(per_layer or {}), **((memory or {}) if start else {})},
            capture=(*capture, *sites.values()),
            train=train,
        )
        if memory is not None:
            new = {name: features.pop(site) for name, site in sites.items()}
            memory = self.remembered(memory, new, start)
        return self._logits(x_BMD, c_BD, deviation), features, memory

    def _tokens(self, x_BMC: Any, label_BD: jax.Array, t: int | None, deviation: float) -> jax.Array:
        """What goes in: the class at the places of the first scale, at the others what they are told."""
        parts = []
        if not t:
            first = self.param('start', normal(deviation), (math.prod(self.scales[0]), self.width))
            parts.append(label_BD[:, None] + first)
        if t != 0 and x_BMC.shape[1]:
            told = Linear(self.width, kernel_init=normal(deviation), name='told')
            parts.append(told(x_BMC.astype(jnp.float32)))
        return jnp.concatenate(parts, axis=1)

    def _logits(self, x_BMD: jax.Array, c_BD: jax.Array, deviation: float) -> jax.Array:
        linear = Linear(2 * self.width, kernel_init=normal(REST * deviation), name='final')
        scale, shift = modulation(linear, c_BD, 2)
        h = modulate(layer_norm(affine=False)(x_BMD), shift, scale).astype(x_BMD.dtype)
        logits = Linear(self.codes, kernel_init=normal(0.02 * deviation), name='head')(h)
        return constrain(logits).astype(jnp.float32)


def build(
    scales: tuple[tuple[Size, Size], ...] = squares(SIDES_256),
    codes: Count = 4096,
    channels: Size = 32,
    classes: Count = 1000,
    depth: Depth = 16,
    hidden: Size | None = None,
    heads: Size | None = None,
    shared: bool = False,
    gate: Positive = 1e-5,
    unit_norm: bool = True,
    drop_path: Part | None = None,
    dtype: Dtype = 'float32',
    attention: str | None = None,
    scan: bool | Count = True,
    remat: str = 'none',
) -> VAR:
    """A VAR of a depth (published: 16, 20, 24, 30 at 256 px, 36 with `shared` at 512 px).

    It is 64 wide a layer of its depth, with as many heads; `hidden` and `heads` override it. `shared`: the
    condition's modulations are made once for all layers. `gate`: how far gates are open at first, published
    1e-3 up to depth 20, 1e-4 at 24, 1e-5 at 30, 5e-6 at 36. `unit_norm`: queries and keys have unit length.
    `drop_path` is how often the last layer's halves are left out in training, 0.1 x depth / 24 as published.
    """
    return VAR(
        depth=depth,
        width=hidden or 64 * depth,
        heads=heads or depth,
        scales=tuple(map(tuple, scales)),
        codes=codes,
        channels=channels,
        classes=classes,
        shared=shared,
        gate=gate,
        unit_norm=unit_norm,
        drop_path=0.1 * depth / 24 if drop_path is None else drop_path,
        dtype=jnp.dtype(dtype),
        attention=attention,
        scan=scan,
        remat=remat,
    )
