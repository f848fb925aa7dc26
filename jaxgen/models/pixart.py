"""PixArt-alpha, -delta and -Sigma: Chen et al., 2310.00426, 2401.05252 and 2403.04692.

DiT made cheap for text: one modulation, computed from the time alone and shared by all blocks, to which every
block adds a learned table (adaLN-single); cross-attention to T5's tokens between self-attention and MLP;
sizes as micro-conditions where the checkpoint has them (alpha 1024); keys and values compressed in the deep
half (Sigma). A block exposes 'attention', 'cross_attention' and 'mlp', before their gates.
"""

# B batch, L image tokens, M text tokens, D width, H height, W width of the input or the text, C channels

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import Count, Depth, Dtype, Positive, Size, Whole
from jaxgen.layers.attention import CrossAttention, SelfAttention
from jaxgen.layers.embeddings import SizeEmbedding, TimeEmbedding, position_table
from jaxgen.layers.linear import Linear, xavier, zeros
from jaxgen.layers.mlp import Mlp
from jaxgen.layers.modulation import layer_norm, modulate, residual
from jaxgen.layers.patches import PatchEmbed, grid_of, unpatchify
from jaxgen.layers.segment import Segment, expose
from jaxgen.layers.stack import Stack, constrain

# Depth, width, heads. XL is the one published (0.6B, for every resolution); S and B have DiT's.
SIZES = {'S': (12, 384, 6), 'B': (12, 768, 12), 'XL': (28, 1152, 16)}

_small = nn.initializers.normal(0.02)


def _table_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(key, shape) * shape[-1] ** -0.5


def _open_table_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    gates = jnp.arange(6)[:, None] % 3 == 2
    return _table_init(key, shape) + gates


class PixArtBlock(nn.Module):
    """Self-attention, cross-attention to the text, MLP; `modulation` is the shared one, [B, 6, D]."""

    heads: int
    qk_norm: bool = False
    compress: int = 1
    sampling: str = 'conv'
    implementation: str | None = None
    open_start: bool = False

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        modulation: jax.Array,
        text_BMD: jax.Array,
        text_mask_BM: jax.Array,
        grid: tuple[int, int],
        *,
        per_layer: Any = None,
        train: bool = False,
    ) -> jax.Array:
        width, dtype = x_BLD.shape[-1], x_BLD.dtype
        table = self.param('table', _open_table_init if self.open_start else _table_init, (6, width))
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = (
            (modulation + table)[:, i, None] for i in range(6)
        )
        h = modulate(layer_norm(affine=False)(x_BLD), shift_attention, scale_attention).astype(dtype)
        attention = SelfAttention(
            self.heads, self.qk_norm, self.compress, self.sampling, self.implementation, name='attention'
        )
        h = attention(h, grid=grid)
        expose(self, 'attention', h)
        x_BLD = residual(x_BLD, h, gate_attention)
        out_init = xavier if self.open_start else zeros
        cross = CrossAttention(self.heads, self.implementation, out_init=out_init, name='cross_attention')
        h = cross(x_BLD, text_BMD, text_mask_BM)
        expose(self, 'cross_attention', h)
        x_BLD = residual(x_BLD, h)
        h = modulate(layer_norm(affine=False)(x_BLD), shift_mlp, scale_mlp).astype(dtype)
        h = Mlp(4 * width, width, name='mlp')(h)
        expose(self, 'mlp', h)
        return residual(x_BLD, h, gate_mlp)


class FinalLayer(nn.Module):
    """Norm, modulation by the time embedding plus a table, projection to patches."""

    features: int

    @nn.compact
    def __call__(self, x_BLD: jax.Array, time_BD: jax.Array) -> jax.Array:
        table = self.param('table', _table_init, (2, x_BLD.shape[-1]))
        parts = time_BD[:, None] + table
        h = modulate(layer_norm(affine=False)(x_BLD), parts[:, 0, None], parts[:, 1, None]).astype(
            x_BLD.dtype
        )
        return Linear(self.features, kernel_init=zeros, name='out')(h)


class PixArt(nn.Module):
    """The network; `cond` is {'text': [B, M, W], 'text_mask': bool [B, M], 'drop': bool [B]} and, for
    micro-conditioning, {'size': [B, 2], 'aspect': [B, 1]}.

    A dropped caption is replaced by `null_text` under the caption's own mask, as published. The authors leave
    that embedding at its random draw; here it is a parameter like any other.
    """

    depth: int
    width: int
    heads: int
    patch: int
    channels: int
    caption_width: int
    caption_length: int
    learned_variance: bool
    micro_conditioning: bool
    base_size: int | None
    interpolation: float
    compress_ratio: int
    compress_layers: tuple[int, ...]
    compress_sampling: str
    qk_norm: bool
    dtype: Any
    attention: str | None
    scan: bool | int
    remat: str
    open_start: bool

    @nn.compact
    def __call__(
        self,
        x_BHWC: jax.Array,
        t_B: jax.Array,
        cond: dict[str, jax.Array],
        *,
        memory: Any = None,
        per_layer: Any = None,
        capture: tuple[str, ...] = (),
        train: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        grid = grid_of(x_BHWC, self.patch)
        x_BLD = PatchEmbed(self.width, self.patch, name='patch')(x_BHWC.astype(self.dtype))
        positions = position_table(
            grid, self.width, base_size=self.base_size, interpolation=self.interpolation
        )
        x_BLD = (x_BLD + positions).astype(self.dtype)
        time_BD = self._time(t_B, cond)
        modulation = Linear((6, self.width), kernel_init=_small, precision='highest', name='modulation')
        text_BMD = self._text(cond)

        stack = Stack(self._segments(), self.scan, self.remat, name='blocks')
        x_BLD, features, memory = stack(
            x_BLD,
            modulation(jax.nn.silu(time_BD)),
            text_BMD,
            cond['text_mask'],
            grid,
            memory=memory,
            per_layer=per_layer,
            capture=capture,
            train=train,
        )
        channels = self.channels * (2 if self.learned_variance else 1)
        x_BLD = FinalLayer(self.patch**2 * channels, name='final')(x_BLD, time_BD)
        # Sharded as its kernel the output would be gathered whole to be unpatchified.
        x_BLD = constrain(x_BLD)
        return unpatchify(x_BLD, grid, self.patch).astype(jnp.float32), features, memory

    def _time(self, t_B: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        time_BD = TimeEmbedding(self.width, name='time')(t_B)
        if not self.micro_conditioning:
            return time_BD
        if 'size' not in cond or 'aspect' not in cond:
            raise ValueError(
                f"micro-conditioning needs 'size' and 'aspect' in the condition, which has {sorted(cond)}"
            )
        size_BD = SizeEmbedding(self.width // 3, name='size')(cond['size'])
        aspect_BD = SizeEmbedding(self.width // 3, name='aspect')(cond['aspect'])
        return time_BD + jnp.concatenate([size_BD, aspect_BD], axis=-1)

    def _text(self, cond: dict[str, jax.Array]) -> jax.Array:
        text_BMW = cond['text']
        length, width = text_BMW.shape[1:]
        if width != self.caption_width or length > self.caption_length:
            raise ValueError(
                f'text is [{length}, {width}] but the network takes up to [{self.caption_length}, '
                f"{self.caption_width}]; set caption_length and caption_width to the text encoder's"
            )
        null = self.param('null_text', _table_init, (self.caption_length, self.caption_width))
        text_BMW = jnp.where(cond['drop'][:, None, None], null[:length].astype(text_BMW.dtype), text_BMW)
        init = xavier if self.open_start else _small
        # Left open, each layer would gather the text of all devices for its keys and values.
        text_BMW = constrain(text_BMW.astype(self.dtype), whole=True)
        return constrain(Mlp(self.width, self.width, kernel_init=init, name='caption')(text_BMW), whole=True)

    def _segments(self) -> tuple[Segment, ...]:
        """Layers cut where the compression of keys and values changes."""
        ratios = [self.compress_ratio if i in self.compress_layers else 1 for i in range(self.depth)]
        starts = [i for i in range(self.depth) if i == 0 or ratios[i] != ratios[i - 1]]
        segments = []
        for start, stop in zip(starts, [*starts[1:], self.depth]):
            block = PixArtBlock(
                self.heads,
                self.qk_norm,
                ratios[start],
                self.compress_sampling,
                self.attention,
                self.open_start,
                parent=None,
            )
            segments.append(Segment(block, stop - start))
        return tuple(segments)


def build(
    size: str = 'XL',
    patch: Size = 2,
    channels: Size = 4,
    caption_width: Size = 4096,
    caption_length: Size = 120,
    learned_variance: bool = True,
    micro_conditioning: bool = False,
    base_size: Size | None = None,
    interpolation: Positive = 1.0,
    compress_ratio: Size = 1,
    compress_layers: tuple[Whole, ...] = (),
    compress_sampling: str = 'conv',
    qk_norm: bool = False,
    dtype: Dtype = 'float32',
    attention: str | None = None,
    scan: bool | Count = True,
    remat: str = 'none',
    open_start: bool = False,
    hidden: Size | None = None,
    depth: Depth | None = None,
    heads: Size | None = None,
) -> PixArt:
    """A PixArt of a given size; hidden, depth and heads override it. `dtype` is what it computes in.

    Positions: `base_size` is the side in tokens of the square grid it is (or was) trained at, as the authors
    take it: image side / 8 / patch; `interpolation` is image side / 512 in theirs (alpha at 256: 1). Without
    base_size positions count tokens. `caption_length` is 120 for alpha and 300 for Sigma.

    Published blocks start with a silent cross-attention and nearly shut gates, for a network made from a
    class-conditional one; `open_start` begins with both open and reads captions far earlier in a short run.
    """
    if size not in SIZES:
        raise ValueError(f'PixArt has no size {size!r}; choose from {sorted(SIZES)}')
    size_depth, size_hidden, size_heads = SIZES[size]
    depth, hidden = depth or size_depth, hidden or size_hidden
    outside = [layer for layer in compress_layers if not 0 <= layer < depth]
    if outside or bool(compress_layers) != (compress_ratio > 1):
        raise ValueError(
            f'compress_ratio={compress_ratio} with compress_layers={tuple(compress_layers)} on {depth} '
            'layers: give a ratio above 1 and the layers it is for, or neither'
        )
    if micro_conditioning and hidden % 3:
        raise ValueError(
            f'micro-conditioning gives each of three numbers a third of the width, not of {hidden}'
        )
    return PixArt(
        depth=depth,
        width=hidden,
        heads=heads or size_heads,
        patch=patch,
        channels=channels,
        caption_width=caption_width,
        caption_length=caption_length,
        learned_variance=learned_variance,
        micro_conditioning=micro_conditioning,
        base_size=base_size,
        interpolation=interpolation,
        compress_ratio=compress_ratio,
        compress_layers=tuple(compress_layers),
        compress_sampling=compress_sampling,
        qk_norm=qk_norm,
        dtype=jnp.dtype(dtype),
        attention=attention,
        scan=scan,
        remat=remat,
        open_start=open_start,
    )
