"""LightningDiT: Yao et al., "Reconstruction vs. Generation", 2501.01423.

DiT with what language models have learned since: rotary positions on top of the fixed ones, RMS norms with
scales of their own under adaLN-Zero, SwiGLU, and optionally normalised queries and keys. Made for latents of
32 channels at a sixteenth of the image's side, one token a position. A block exposes 'attention' and 'mlp',
its two halves before their gates.
"""

# B batch, L tokens, D width, K width of a head, H height, W width of the input, C channels

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import Count, Depth, Dtype, Size
from jaxgen.layers.attention import SelfAttention
from jaxgen.layers.embeddings import LabelEmbedding, TimeEmbedding, position_table
from jaxgen.layers.linear import Linear, xavier_fused, zeros
from jaxgen.layers.mlp import SwiGlu
from jaxgen.layers.modulation import condition, modulate, modulation, residual, rms_norm
from jaxgen.layers.patches import PatchEmbed, grid_of, unpatchify
from jaxgen.layers.rope import rope_2d
from jaxgen.layers.segment import Segment, expose
from jaxgen.layers.stack import Stack, constrain

# Published sizes: depth, width, heads.
SIZES = {
    'B': (12, 768, 12),
    'L': (24, 1024, 16),
    'XL': (28, 1152, 16),
    '1p0B': (24, 1536, 24),
    '1p6B': (28, 1792, 28),
}


class LightningDiTBlock(nn.Module):
    """Attention and SwiGLU, each normalised, modulated and gated by the condition; `rope` [L, K / 2]."""

    width: int
    heads: int
    qk_norm: bool = False
    implementation: str | None = None

    def setup(self) -> None:
        self.modulation = Linear(6 * self.width, kernel_init=zeros)
        self.attention_norm = rms_norm()
        self.attention = SelfAttention(self.heads, implementation=self.implementation, head_norm=self.qk_norm)
        self.mlp_norm = rms_norm()
        # Two thirds of DiT's hidden width: as many parameters with three matrices.
        hidden = int(2 / 3 * (4 * self.width))
        self.mlp = SwiGlu(hidden, self.width, use_bias=True, kernel_init=xavier_fused(2))

    def prepare(self, c_BD: jax.Array, rope: jax.Array) -> list[jax.Array]:
        """Shift, scale and gate of both halves."""
        return modulation(self.modulation, c_BD, 6)

    def __call__(
        self,
        x_BLD: jax.Array,
        c_BD: jax.Array,
        rope: jax.Array,
        *,
        prepared: list[jax.Array] | None = None,
        per_layer: Any = None,
        train: bool = False,
    ) -> jax.Array:
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = (
            prepared or self.prepare(c_BD, rope)
        )
        h = modulate(self.attention_norm(x_BLD), shift_attention, scale_attention).astype(x_BLD.dtype)
        h = self.attention(h, rope=rope)
        expose(self, 'attention', h)
        x_BLD = residual(x_BLD, h, gate_attention)
        h = modulate(self.mlp_norm(x_BLD), shift_mlp, scale_mlp).astype(x_BLD.dtype)
        h = self.mlp(h)
        expose(self, 'mlp', h)
        return residual(x_BLD, h, gate_mlp)


class FinalLayer(nn.Module):
    """Norm, modulation by the condition, projection to patches."""

    features: int

    @nn.compact
    def __call__(self, x_BLD: jax.Array, c_BD: jax.Array) -> jax.Array:
        dtype = x_BLD.dtype
        linear = Linear(2 * x_BLD.shape[-1], kernel_init=zeros, name='modulation')
        shift, scale = modulation(linear, c_BD, 2)
        h = modulate(rms_norm(name='norm')(x_BLD), shift, scale).astype(dtype)
        return Linear(self.features, kernel_init=zeros, name='out')(h)


class LightningDiT(nn.Module):
    """The network; `cond` is {'label': int [B], 'drop': bool [B]}."""

    depth: int
    width: int
    heads: int
    patch: int
    channels: int
    classes: int
    qk_norm: bool
    dtype: Any
    attention: str | None
    scan: bool | int
    remat: str

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
        x_BLD = (x_BLD + position_table(grid, self.width)).astype(self.dtype)
        label_BD = LabelEmbedding(self.classes, self.width, name='label')(cond['label'], cond['drop'])
        c_BD = TimeEmbedding(self.width, name='time')(t_B) + label_BD
        c_BD = condition(c_BD, self.dtype)

        block = LightningDiTBlock(self.width, self.heads, self.qk_norm, self.attention, parent=None)
        stack = Stack((Segment(block, self.depth),), self.scan, self.remat, name='blocks')
        rope_LK = jnp.asarray(rope_2d(grid, self.width // self.heads))
        x_BLD, features, memory = stack(
            x_BLD, c_BD, rope_LK, memory=memory, per_layer=per_layer, capture=capture, train=train
        )
        x_BLD = FinalLayer(self.patch**2 * self.channels, name='final')(x_BLD, c_BD)
        # Sharded as its kernel the output would be gathered whole to be unpatchified.
        x_BLD = constrain(x_BLD)
        return unpatchify(x_BLD, grid, self.patch).astype(jnp.float32), features, memory


def build(
    size: str = 'XL',
    patch: Size = 1,
    channels: Size = 32,
    classes: Count = 1000,
    qk_norm: bool = False,
    dtype: Dtype = 'float32',
    attention: str | None = None,
    scan: bool | Count = True,
    remat: str = 'none',
    hidden: Size | None = None,
    depth: Depth | None = None,
    heads: Size | None = None,
) -> LightningDiT:
    """A LightningDiT of a published size; hidden, depth and heads override it.

    `qk_norm` is for trainings that run into NaN, as the authors advise; their published weights are without.
    `dtype` is what it computes in.
    """
    if size not in SIZES:
        raise ValueError(f'LightningDiT has no size {size!r}; choose from {sorted(SIZES)}')
    size_depth, size_hidden, size_heads = SIZES[size]
    return LightningDiT(
        depth=depth or size_depth,
        width=hidden or size_hidden,
        heads=heads or size_heads,
        patch=patch,
        channels=channels,
        classes=classes,
        qk_norm=qk_norm,
        dtype=jnp.dtype(dtype),
        attention=attention,
        scan=scan,
        remat=remat,
    )
