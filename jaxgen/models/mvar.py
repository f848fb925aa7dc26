"""M-VAR: Ren et al., "M-VAR: Decoupled Scale-wise Autoregressive Modeling for High-Quality Image Generation",
2411.10433.

VAR whose tokens attend to their own scale alone; what a scale is told of those before it goes through a
state-space layer over all tokens, coarse to fine and in reading order, whose cost grows with their number
and not with its square. Drawing keeps no keys and values but a state of fixed size, and a scale costs the
same whatever was before it.
"""

# B batch, M tokens, D width

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.config import Count, Depth, Dtype, Part, Positive, Size
from jaxgen.layers import state_space
from jaxgen.layers.linear import Linear
from jaxgen.layers.mlp import Mlp
from jaxgen.layers.modulation import layer_norm, modulate, modulation, residual
from jaxgen.layers.state_space import StateSpace
from jaxgen.models.var import REST, SIDES_256, VAR, ScaleAttention, by_part, normal, squares

EXPANSION = 2  # of the state-space layer's width


class MVARBlock(nn.Module):
    """Attention inside each scale, of so many tokens as `lengths` says, the layer across them, and MLP.

    Of `per_layer` it reads 'state' and 'tail', see StateSpace, and 'branches' [B, 3], by which its three
    parts are multiplied (stochastic depth).
    """

    width: int
    depth: int
    heads: int
    head_width: int
    state: int
    unit_norm: bool
    gate: float
    lengths: tuple[int, ...]
    implementation: str | None = None

    def setup(self) -> None:
        deviation = math.sqrt(1 / 3 / self.width)
        # The MLP's gate is as far open as what only scales and shifts, in the published code.
        init = by_part(deviation, self.width, (self.gate, self.gate, *[REST] * 7))
        self.modulation = Linear(9 * self.width, kernel_init=init)
        self.attention_norm = layer_norm(affine=False)
        self.across_norm, self.mlp_norm = layer_norm(affine=False), layer_norm(affine=False)
        self.attention = ScaleAttention(
            self.heads,
            self.unit_norm,
            0,
            deviation,
            deviation / math.sqrt(2 * self.depth),
            self.implementation,
            self.lengths,
        )
        self.across = StateSpace(
            EXPANSION * self.width // self.head_width, self.head_width, self.state, normal(deviation)
        )
        self.mlp = Mlp(4 * self.width, self.width, kernel_init=normal(deviation))

    def prepare(self, c_BD: jax.Array, mask: None) -> list[jax.Array]:
        """Gates, scales and shifts of the three parts."""
        return modulation(self.modulation, c_BD, 9)

    def __call__(
        self,
        x_BMD: jax.Array,
        c_BD: jax.Array,
        mask: None,
        *,
        prepared: list[jax.Array] | None = None,
        per_layer: Any = None,
        train: bool = False,
    ) -> jax.Array:
        made, per_layer = prepared or self.prepare(c_BD, mask), per_layer or {}
        gates, scales, shifts = made[:3], made[3:6], made[6:]
        if 'branches' in per_layer:
            branches = per_layer['branches'].astype(gates[0].dtype)[..., None, None]
            gates = [gate * branches[:, part] for part, gate in enumerate(gates)]
        memory = per_layer if 'state' in per_layer else None
        parts = (
            (self.attention_norm, lambda h: self.attention(h, None, None)),
            (self.across_norm, lambda h: self.across(h, memory)),
            (self.mlp_norm, self.mlp),
        )
        for (norm, part), gate, scale, shift in zip(parts, gates, scales, shifts):
            h = modulate(norm(x_BMD), shift, scale).astype(x_BMD.dtype)
            x_BMD = residual(x_BMD, part(h), gate)
        return x_BMD


class MVAR(VAR):
    """VAR's network with such blocks; `memory` are states and the convolution's last inputs, by layer."""

    head_width: int = 64
    state: int = 64

    branches = 3
    sites = {'state': 'across/state', 'tail': 'across/tail'}

    def cache(self, batch: int) -> dict[str, jax.Array]:
        """Before the first scale, of every layer."""
        heads = EXPANSION * self.width // self.head_width
        one = state_space.blank(batch, heads, self.head_width, self.state, self.dtype)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.depth, *leaf.shape)), one)

    def block(self, held: int, lengths: tuple[int, ...]) -> MVARBlock:
        """A layer for scales of these lengths."""
        return MVARBlock(
            self.width,
            self.depth,
            self.heads,
            self.head_width,
            self.state,
            self.unit_norm,
            self.gate,
            lengths,
            self.attention,
            parent=None,
        )

    def mask(self, levels: np.ndarray) -> None:
        """Blocks know the scales' lengths."""

    def remembered(self, memory: Any, new: Any, held: int) -> Any:
        """States and inputs take the place of those before."""
        return {name: new[name].astype(memory[name].dtype) for name in new}


def build(
    scales: tuple[tuple[Size, Size], ...] = squares(SIDES_256),
    codes: Count = 4096,
    channels: Size = 32,
    classes: Count = 1000,
    depth: Depth = 16,
    hidden: Size | None = None,
    heads: Size | None = None,
    head_width: Size = 64,
    state: Size = 64,
    gate: Positive = 1e-5,
    unit_norm: bool = True,
    drop_path: Part | None = None,
    dtype: Dtype = 'float32',
    attention: str | None = None,
    scan: bool | Count = True,
    remat: str = 'none',
) -> MVAR:
    """An M-VAR of a depth (published: 12, 16, 20, 24 and 32 at 256 px), see var.build.

    `head_width` and `state` are the sides of the matrix that a head of the state-space layer keeps. Up to
    depth 20 the published ones have `unit_norm` off, and gates of 1e-3.
    """
    hidden = hidden or 64 * depth
    if EXPANSION * hidden % head_width:
        raise ValueError(
            f'model.head_width is {head_width}, which does not divide {EXPANSION} x {hidden}, the width of '
            'the state-space layer; take another head_width or hidden.'
        )
    return MVAR(
        depth=depth,
        width=hidden,
        heads=heads or depth,
        scales=tuple(map(tuple, scales)),
        codes=codes,
        channels=channels,
        classes=classes,
        shared=False,
        gate=gate,
        unit_norm=unit_norm,
        drop_path=0.1 * depth / 24 if drop_path is None else drop_path,
        dtype=jnp.dtype(dtype),
        attention=attention,
        scan=scan,
        remat=remat,
        head_width=head_width,
        state=state,
    )
