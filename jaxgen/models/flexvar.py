"""FlexVAR: Jiao et al., "FlexVAR: Flexible Visual Autoregressive Modeling without Residual Prediction",
2502.20313.

VAR whose scales are each the picture itself, smaller, and not what is missing of it: a scale can then be told
any one before it, so that steps of training may go by other scales and one network draws other sizes, other
shapes and in more or fewer steps. Where a token is says one table for all scales, resized to each.
"""

# N tokens of all scales, D width

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.config import Count, Depth, Dtype, Part, Positive, Size
from jaxgen.layers.resize import resize
from jaxgen.models import var
from jaxgen.models.var import VAR


def sinusoids(side: int, width: int) -> np.ndarray:
    """The table at first, [side, side, D]: sines of the row and cosines of the column take turns."""
    angles = np.arange(side)[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    table = np.empty((side, side, width), np.float32)
    table[..., 0::2] = np.sin(angles)[:, None]
    table[..., 1::2] = np.cos(angles)[None]
    return table


class FlexVAR(VAR):
    """VAR's network with places for any scales, `side` a side the finest that are learned."""

    side: int = 32

    def at(self, scales: tuple[tuple[int, int], ...]) -> 'FlexVAR':
        """The same network, by the same parameters, for other scales."""
        _check(scales, self.side)
        return self.clone(scales=scales)

    def places(self, levels: np.ndarray) -> jax.Array:
        """What says where a token is, [N, D]."""
        table = self.param('position', lambda key, shape: jnp.asarray(sinusoids(*shape[1:])), self._table)
        resized = (resize(table, scale, 'area') for scale in self.scales)
        return jnp.concatenate([places.reshape(-1, self.width) for places in resized])

    @property
    def _table(self) -> tuple[int, int, int]:
        return self.side, self.side, self.width


def build(
    scales: tuple[tuple[Size, Size], ...] = var.squares(var.SIDES_256),
    codes: Count = 8912,
    channels: Size = 32,
    classes: Count = 1000,
    depth: Depth = 16,
    hidden: Size | None = None,
    heads: Size | None = None,
    side: Size = 32,
    gate: Positive = 1e-5,
    drop_path: Part | None = None,
    dtype: Dtype = 'float32',
    attention: str | None = None,
    scan: bool | Count = True,
    remat: str = 'none',
) -> FlexVAR:
    """A FlexVAR of a depth (published: 16, 20, 24), see var.build.

    `scales` are those it begins with, `side` the rows and columns of the table of places.
    """
    _check(scales, side)
    return FlexVAR(
        depth=depth,
        width=hidden or 64 * depth,
        heads=heads or depth,
        scales=tuple(map(tuple, scales)),
        codes=codes,
        channels=channels,
        classes=classes,
        shared=False,
        gate=gate,
        unit_norm=True,
        drop_path=0.1 * depth / 24 if drop_path is None else drop_path,
        dtype=jnp.dtype(dtype),
        attention=attention,
        scan=scan,
        remat=remat,
        side=side,
    )


def _check(scales: tuple[tuple[int, int], ...], side: int) -> None:
    """Refuse scales some of whose tokens would be told the same place."""
    finest = max(scales, key=max)
    if max(finest) > side:
        raise ValueError(
            f'scales up to {finest[0]} x {finest[1]} tokens are finer than the table of places, which has '
            f'{side} a side; draw a smaller size, or train with model.side={max(finest)}.'
        )
