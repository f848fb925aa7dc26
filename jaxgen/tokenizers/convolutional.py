"""The convolutional encoder and decoder of latent diffusion (Rombach et al., 2112.10752).

Born in VQGAN (Esser et al., 2012.09841) and used under every bottleneck since. Levels of residual blocks,
each level half the side of the one before; attention in the middle and, where asked, after every block of
chosen levels. With `strips` above 1 every convolution runs over strips of rows, the norms' statistics still
being the whole map's: the same numbers from less memory. Under a mesh, rows lie on its `sequence` axis.
"""

# B batch, H height, W width, C channels

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.layers.attention import attention
from jaxgen.layers.convolution import Convolution
from jaxgen.layers.groupnorm import GroupNorm, Normaliser
from jaxgen.layers.linear import Linear
from jaxgen.layers.stack import constrain

# Attention scores are computed for as many queries at a time as give this many of them.
SCORES = 2**26


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution, twice, on a residual that is projected where the width changes."""

    features: int
    groups: int
    strips: int = 1

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        h = x_BHWC
        for number in ('1', '2'):
            norm = GroupNorm(self.groups, name=f'norm{number}')(h)
            convolution = Convolution(self.features, strips=self.strips, name=f'convolution{number}')
            h = convolution(h, activated(norm))
        if x_BHWC.shape[-1] != self.features:
            x_BHWC = Linear(self.features, name='shortcut')(x_BHWC)
        return constrain(x_BHWC + h)


class MapAttention(nn.Module):
    """One head of attention among all places of a map, on a residual."""

    groups: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        batch, height, width, channels = x_BHWC.shape
        places = height * width
        h = GroupNorm(self.groups, name='norm')(x_BHWC)(x_BHWC)
        q, k, v = (Linear(channels, name=name)(h) for name in ('query', 'key', 'value'))
        k, v = (a.reshape(batch, places, 1, channels) for a in (k, v))

        def attend(q_BHWC: jax.Array) -> jax.Array:
            return attention(q_BHWC.reshape(batch, -1, 1, channels), k, v).reshape(q_BHWC.shape)

        # Queries are taken by columns, so that rows may be sharded.
        wanted = batch * places**2 / SCORES
        pieces = next(n for n in range(1, width + 1) if width % n == 0 and (n >= wanted or n == width))
        if pieces == 1:
            h = attend(q)
        else:
            queries = jnp.moveaxis(q.reshape(batch, height, pieces, -1, channels), 2, 0)
            h = jnp.moveaxis(lax.map(jax.checkpoint(attend), queries), 0, 2).reshape(x_BHWC.shape)
        return constrain(x_BHWC + Linear(channels, name='out')(h))


class Level(nn.Module):
    """Residual blocks of one width, attention after each where asked, then another resolution."""

    features: int
    blocks: int
    groups: int
    attention: bool = False
    resample: str = 'none'
    strips: int = 1

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        for number in range(self.blocks):
            block = ResidualBlock(self.features, self.groups, self.strips, name=f'block_{number}')
            x_BHWC = block(x_BHWC)
            if self.attention:
                x_BHWC = MapAttention(self.groups, name=f'attention_{number}')(x_BHWC)
        if self.resample == 'none':
            return x_BHWC
        resample = Convolution(self.features, self.resample, self.strips, name='resample')
        return constrain(resample(x_BHWC))


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution, with attention between them where asked."""

    groups: int
    attention: bool
    strips: int = 1

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        features = x_BHWC.shape[-1]
        x_BHWC = ResidualBlock(features, self.groups, self.strips, name='block_0')(x_BHWC)
        if self.attention:
            x_BHWC = MapAttention(self.groups, name='attention')(x_BHWC)
        return ResidualBlock(features, self.groups, self.strips, name='block_1')(x_BHWC)


class Encoder(nn.Module):
    """Images [B, H, W, C] to `channels` features (twice a Gaussian's latents), 2^(levels - 1) times smaller.

    `attention` are the levels, counted from the finest, that have attention after every block.
    """

    widths: tuple[int, ...]
    blocks: int
    channels: int
    groups: int = 32
    attention: tuple[int, ...] = ()
    middle_attention: bool = True
    strips: int = 1

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        groups, strips, last = self.groups, self.strips, len(self.widths) - 1
        x_BHWC = constrain(Convolution(self.widths[0], strips=strips, name='in')(x_BHWC))
        for level, features in enumerate(self.widths):
            resample, attend = 'down' if level < last else 'none', level in self.attention
            down = Level(features, self.blocks, groups, attend, resample, strips, name=f'down_{level}')
            x_BHWC = down(x_BHWC)
        x_BHWC = Middle(groups, self.middle_attention, strips, name='middle')(x_BHWC)
        norm = GroupNorm(groups, name='norm')(x_BHWC)
        return Convolution(self.channels, strips=strips, name='out')(x_BHWC, activated(norm))


class Decoder(nn.Module):
    """The way back: latents to images of `channels`; a level has one block more than the encoder's."""

    widths: tuple[int, ...]
    blocks: int
    channels: int = 3
    groups: int = 32
    attention: tuple[int, ...] = ()
    middle_attention: bool = True
    strips: int = 1

    @nn.compact
    def __call__(self, z_BHWC: jax.Array) -> jax.Array:
        groups, strips = self.groups, self.strips
        x_BHWC = constrain(Convolution(self.widths[-1], strips=strips, name='in')(z_BHWC))
        x_BHWC = Middle(groups, self.middle_attention, strips, name='middle')(x_BHWC)
        for level, features in reversed(tuple(enumerate(self.widths))):
            resample, attend = 'up' if level else 'none', level in self.attention
            up = Level(features, self.blocks + 1, groups, attend, resample, strips, name=f'up_{level}')
            x_BHWC = up(x_BHWC)
        norm = GroupNorm(groups, name='norm')(x_BHWC)
        return Convolution(self.channels, strips=strips, name='out')(x_BHWC, activated(norm))


def activated(norm: Normaliser) -> Callable[[jax.Array], jax.Array]:
    """SiLU after a norm, pixel by pixel."""
    return lambda x: jax.nn.silu(norm(x))
