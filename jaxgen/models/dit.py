"""DiT: Peebles & Xie, "Scalable Diffusion Models with Transformers", 2212.09748.

A ViT over patches of latents, its condition (time plus class) entering through adaLN-Zero: every block
regresses shift, scale and gate of both its halves from the condition, from zero weights, so that it starts as
the identity. A block exposes 'attention' and 'mlp', its two halves before their gates.
"""

# B batch, L tokens, D width, H height, W width of the input, C channels

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import Count, Depth, Dtype, Positive, Size
from jaxgen.layers.attention import SelfAttention
from jaxgen.layers.embeddings import LabelEmbedding, TimeEmbedding, position_table
from jaxgen.layers.linear import Linear, zeros
from jaxgen.layers.mlp import Mlp
from jaxgen.layers.modulation import condition, layer_norm, modulate, modulation, residual
from jaxgen.layers.patches import PatchEmbed, grid_of, unpatchify
from jaxgen.layers.segment import Segment, expose
from jaxgen.layers.stack import Stack, constrain

# Published sizes: depth, width, heads.
SIZES = {'S': (12, 384, 6), 'B': (12, 768, 12), 'L': (24, 1024, 16), 'XL': (28, 1152, 16)}


class DiTBlock(nn.Module):
    """Attention and MLP, each normalised, modulated and gated by the condition."""

    width: int
    heads: int
    norm_epsilon: float
    implementation: str | None = None

    def setup(self) -> None:
        self.modulation = Linear(6 * self.width, kernel_init=zeros)
        self.attention_norm = layer_norm(affine=False)
        self.attention = SelfAttention(self.heads, implementation=self.implementation)
        self.mlp_norm = layer_norm(affine=False, epsilon=self.norm_epsilon)
        self.mlp = Mlp(4 * self.width, self.width)

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
        h = modulate(self.attention_norm(x_BLD), shift_attention, scale_attention).astype(x_BLD.dtype)
        h = self.attention(h)
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
        linear = Linear(2 * x_BLD.shape[-1], kernel_init=zeros, name='modulation')
        shift, scale = modulation(linear, c_BD, 2)
        h = modulate(layer_norm(affine=False)(x_BLD), shift, scale).astype(x_BLD.dtype)
        return Linear(self.features, kernel_init=zeros, name='out')(h)


class DiT(nn.Module):
    """The network; `cond` is {'label': int [B], 'drop': bool [B]}."""

    depth: int
    width: int
    heads: int
    patch: int
    channels: int
    classes: int
    learned_variance: bool
    discard_variance: bool
    base_size: int | None
    frequency_shift: int
    norm_epsilon: float
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
        x_BLD = (x_BLD + position_table(grid, self.width, base_size=self.base_size)).astype(self.dtype)
        label_BD = LabelEmbedding(self.classes, self.width, name='label')(cond['label'], cond['drop'])
        c_BD = TimeEmbedding(self.width, self.frequency_shift, name='time')(t_B) + label_BD
        c_BD = condition(c_BD, self.dtype)

        block = DiTBlock(self.width, self.heads, self.norm_epsilon, self.attention, parent=None)
        stack = Stack((Segment(block, self.depth),), self.scan, self.remat, name='blocks')
        x_BLD, features, memory = stack(
            x_BLD, c_BD, memory=memory, per_layer=per_layer, capture=capture, train=train
        )
        channels = self.channels * (2 if self.learned_variance or self.discard_variance else 1)
        x_BLD = FinalLayer(self.patch**2 * channels, name='final')(x_BLD, c_BD)
        # Sharded as its kernel the output would be gathered whole to be unpatchified.
        x_BLD = constrain(x_BLD)
        out_BHWC = unpatchify(x_BLD, grid, self.patch).astype(jnp.float32)
        return out_BHWC[..., : self.channels] if self.discard_variance else out_BHWC, features, memory


def build(
    size: str = 'XL',
    patch: Size = 2,
    channels: Size = 4,
    classes: Count = 1000,
    learned_variance: bool = True,
    discard_variance: bool = False,
    base_size: Size | None = None,
    frequency_shift: Literal[0, 1] = 0,
    norm_epsilon: Positive = 1e-6,
    dtype: Dtype = 'float32',
    attention: str | None = None,
    scan: bool | Count = True,
    remat: str = 'none',
    hidden: Size | None = None,
    depth: Depth | None = None,
    heads: Size | None = None,
) -> DiT:
    """A DiT of a published size; hidden, depth and heads override it. `dtype` is what it computes in.

    With `base_size`, the side in tokens of the square grid it was trained at, another grid spans the same
    positions; without, positions count tokens. diffusers computes its DiT with a `frequency_shift` of 1 in
    the embedding of time and, in its published folders, a `norm_epsilon` (that before the MLP) of 1e-5.
    `discard_variance`: the outputs for a variance are there and thrown away, as in SiT's published weights.
    """
    if size not in SIZES:
        raise ValueError(f'DiT has no size {size!r}; choose from {sorted(SIZES)}')
    if learned_variance and discard_variance:
        raise ValueError('a variance is learned or discarded: set one of learned_variance, discard_variance')
    size_depth, size_hidden, size_heads = SIZES[size]
    return DiT(
        depth=depth or size_depth,
        width=hidden or size_hidden,
        heads=heads or size_heads,
        patch=patch,
        channels=channels,
        classes=classes,
        learned_variance=learned_variance,
        discard_variance=discard_variance,
        base_size=base_size,
        frequency_shift=frequency_shift,
        norm_epsilon=norm_epsilon,
        dtype=jnp.dtype(dtype),
        attention=attention,
        scan=scan,
        remat=remat,
    )
