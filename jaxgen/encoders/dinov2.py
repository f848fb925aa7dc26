"""DINOv2 (Oquab et al., 2304.07193), with or without registers (Darcet et al., 2309.16588).

A self-supervised vision transformer with LayerScale; the giant one has SwiGLU MLPs. Its features are what
alignment losses and feature-space discriminators read: any layer's, class token and registers first, are
captured as '<layer>.out'.
"""

# B batch, L patches, R registers, D width, H and W rows and columns of pixels

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import Array

from jaxgen.config import Depth, Dtype, NonNegative, Positive, Size, Whole
from jaxgen.encoders.vit import VitBlock, resized_positions, with_tokens
from jaxgen.layers.modulation import layer_norm
from jaxgen.layers.patches import PatchEmbed, grid_of
from jaxgen.layers.stack import Segment, Stack

# Width, depth, heads.
SIZES = {'S': (384, 12, 6), 'B': (768, 12, 12), 'L': (1024, 24, 16), 'g': (1536, 40, 24)}

_small = nn.initializers.normal(0.02)


@flax.struct.dataclass
class Features:
    """The normalised tokens of the last layer, and the activations asked for by name."""

    class_token: Array
    registers: Array
    patches: Array
    captured: Mapping[str, Array]


class Dinov2(nn.Module):
    """Normalised pixels [B, H, W, 3] of any size that patches divide to Features.

    image: the side of the pictures that the positions are for. Others resize them, bicubic: `antialias` with
    registers and not without them, `offset` 0 as transformers has it. The authors' code has an offset of 0.1
    without registers and none with them.
    """

    patch: int
    image: int
    width: int
    depth: int
    heads: int
    hidden: int
    swiglu: bool
    registers: int
    antialias: bool
    offset: float
    mask_token: bool
    scale: float
    epsilon: float
    dtype: Any
    attention: str | None
    scan: bool

    @nn.compact
    def __call__(
        self, x_BHWC: Array, hide_BL: Array | None = None, capture: tuple[str, ...] = ()
    ) -> Features:
        """`hide_BL` is True for the patches that the mask token takes the place of."""
        grid = grid_of(x_BHWC, self.patch)
        x_BLD = PatchEmbed(self.width, self.patch, name='patch')(x_BHWC.astype(self.dtype))
        token_D = self.param('class_token', _small, (self.width,))
        position_LD = self.param('position', _small, (1 + (self.image // self.patch) ** 2, self.width))
        if self.mask_token:
            mask_D = self.param('mask_token', nn.initializers.zeros, (self.width,))
            if hide_BL is not None:
                x_BLD = jnp.where(hide_BL[..., None], mask_D.astype(self.dtype), x_BLD)
        x_BLD = with_tokens(token_D[None], x_BLD)
        positions = resized_positions(position_LD, grid, antialias=self.antialias, offset=self.offset)
        x_BLD = x_BLD + positions.astype(self.dtype)
        first = 1 + self.registers
        if self.registers:
            register_RD = self.param('registers', _small, (self.registers, self.width))
            x_BLD = jnp.concatenate([x_BLD[:, :1], with_tokens(register_RD, x_BLD[:, 1:])], axis=1)
        block = VitBlock(
            self.heads,
            self.hidden,
            'swiglu' if self.swiglu else 'erf',
            self.epsilon,
            scale=self.scale,
            attention=self.attention,
            parent=None,
        )
        stack = Stack((Segment(block, self.depth),), self.scan, name='blocks')
        x_BLD, captured, _ = stack(x_BLD, None, capture=capture)
        x_BLD = layer_norm(affine=True, epsilon=self.epsilon, dtype=self.dtype, name='norm')(x_BLD)
        return Features(x_BLD[:, 0], x_BLD[:, 1:first], x_BLD[:, first:], captured)


def build(
    size: str = 'B',
    patch: Size = 14,
    image: Size = 518,
    registers: Whole = 0,
    antialias: bool | None = None,
    offset: NonNegative = 0.0,
    mask_token: bool = True,
    swiglu: bool | None = None,
    scale: Positive = 1.0,
    epsilon: Positive = 1e-6,
    width: Size | None = None,
    depth: Depth | None = None,
    heads: Size | None = None,
    hidden: Size | None = None,
    dtype: Dtype = 'float32',
    attention: str | None = None,
    scan: bool = True,
) -> Dinov2:
    """A DINOv2 of a published size, 'S', 'B', 'L' or 'g'; what is given beside overrides it.

    registers: 4 in those that have them. `antialias` and `offset` are for resized positions, `scale` is where
    LayerScale starts. A SwiGLU's hidden width is two thirds of four widths, rounded up to 8.
    """
    if size not in SIZES:
        raise ValueError(f'DINOv2 has no size {size!r}; choose from {", ".join(SIZES)}.')
    size_width, size_depth, size_heads = SIZES[size]
    width, swiglu = width or size_width, size == 'g' if swiglu is None else swiglu
    return Dinov2(
        patch=patch,
        image=image,
        width=width,
        depth=depth or size_depth,
        heads=heads or size_heads,
        hidden=hidden or mlp_width(width, 4, swiglu),
        swiglu=swiglu,
        registers=registers,
        antialias=registers > 0 if antialias is None else antialias,
        offset=offset,
        mask_token=mask_token,
        scale=scale,
        epsilon=epsilon,
        dtype=jnp.dtype(dtype),
        attention=attention,
        scan=scan,
    )


def mlp_width(width: int, ratio: float, swiglu: bool) -> int:
    """The hidden width of an MLP that is `ratio` times as wide as the network, or of the SwiGLU like it."""
    hidden = int(width * ratio)
    return -(-int(hidden * 2 / 3) // 8) * 8 if swiglu else hidden
