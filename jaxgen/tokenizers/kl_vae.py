"""The autoencoder of latent diffusion (Rombach et al., 2112.10752): images to a Gaussian over latents.

Stable Diffusion 1, 2 and XL (f8, 4 channels), SD3 and FLUX (16 channels, shifted); PixArt and DiT use those
of SD. Latents are normalised for the generator, (z - mean) / deviation x scale. Large images are decoded, and
encoded, one at a time, by tiles, or in strips with the same result as whole.
"""

# B batch, H height, W width, C channels

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgen.config import Depth, Dtype, Part, Positive, Size, Whole
from jaxgen.keys import draw
from jaxgen.layers.linear import Linear
from jaxgen.layers.segment import batch_shards
from jaxgen.tokenizers.convolutional import Decoder, Encoder
from jaxgen.tokenizers.tiles import in_tiles


class AutoencoderKL(nn.Module):
    """The network. `moments` and `decode` speak of latents as they are, `normalised` of the generator's.

    `upcast` is the publisher's word that half precision is not enough for it.
    """

    widths: tuple[int, ...]
    blocks: int
    channels: int
    groups: int
    attention: tuple[int, ...]
    middle_attention: bool
    quant_conv: bool
    post_quant_conv: bool
    scale: float
    shift: float | None
    mean: tuple[float, ...] | None
    deviation: tuple[float, ...] | None
    sample_size: int
    upcast: bool
    dtype: Any
    strips: int

    def setup(self) -> None:
        shared = {
            'widths': self.widths,
            'blocks': self.blocks,
            'groups': self.groups,
            'attention': self.attention,
            'middle_attention': self.middle_attention,
            'strips': self.strips,
        }
        self.encoder = Encoder(channels=2 * self.channels, **shared)
        self.decoder = Decoder(**shared)
        if self.quant_conv:
            self.to_moments = Linear(2 * self.channels)
        if self.post_quant_conv:
            self.from_latents = Linear(self.channels)

    def __call__(self, x_BHWC: Array) -> Array:
        """Images through the latents' means and back."""
        mean_BHWC = self.moments(x_BHWC)[..., : self.channels]
        return self.decode(self.restored(self.normalised(mean_BHWC)))

    @property
    def factor(self) -> int:
        """Pixels to a latent, along a side."""
        return 2 ** (len(self.widths) - 1)

    def moments(self, x_BHWC: Array) -> Array:
        """Means and log-variances of the latents, side by side, of images in [-1, 1]."""
        moments = self.encoder(x_BHWC.astype(self.dtype))
        moments = self.to_moments(moments) if self.quant_conv else moments
        return moments.astype(jnp.float32)

    def decode(self, z_BHWC: Array) -> Array:
        """Images in [-1, 1], give or take."""
        z_BHWC = z_BHWC.astype(self.dtype)
        z_BHWC = self.from_latents(z_BHWC) if self.post_quant_conv else z_BHWC
        return self.decoder(z_BHWC).astype(jnp.float32)

    def normalised(self, z_BHWC: Array) -> Array:
        """Latents as the generator has them."""
        mean, deviation = self.normalisation()
        return (z_BHWC - mean) / deviation * self.scale

    def restored(self, latents_BHWC: Array) -> Array:
        """The inverse of normalised."""
        mean, deviation = self.normalisation()
        return latents_BHWC / self.scale * deviation + mean

    def gaussian(self, moments_BHWC: Array) -> Array:
        """Means and standard deviations of the generator's latents, side by side."""
        z_BHWC, log_variance_BHWC = jnp.split(moments_BHWC, 2, axis=-1)
        spread_BHWC = jnp.exp(0.5 * jnp.clip(log_variance_BHWC, -30.0, 20.0))
        spread_BHWC = spread_BHWC / self.normalisation()[1] * self.scale
        return jnp.concatenate([self.normalised(z_BHWC), spread_BHWC], axis=-1)

    def normalisation(self) -> tuple[Any, Any]:
        """Mean and standard deviation that latents are normalised by."""
        if self.mean is None:
            return self.shift or 0.0, 1.0
        return jnp.asarray(self.mean), jnp.asarray(self.deviation)


@dataclasses.dataclass(frozen=True)
class KlVae:
    """Images [B, H, W, 3] of uint8 to normalised latents and back, through a frozen network."""

    resolution: int
    network: AutoencoderKL
    sample: bool
    decoding: str
    tile: int
    overlap: float
    trains: tuple[str, ...] = ()
    reads: tuple[str, ...] = ('image',)

    @property
    def holds(self) -> dict[str, nn.Module]:
        """The frozen networks, by the name of their parameters."""
        return {'tokenizer': self.network}

    @property
    def latent(self) -> tuple[int, int, int]:
        """The shape of one example's latents."""
        return self.latent_of(self.resolution, self.resolution)

    def latent_of(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape of the latents of an image of any size."""
        factor = self.network.factor
        if height % factor or width % factor:
            raise ValueError(
                f'an image of {height} x {width} has no latents: both sides must divide by {factor}.'
            )
        return height // factor, width // factor, self.network.channels

    def init(self, key: Array) -> dict[str, Any]:
        """Fresh parameters, in the place of published ones."""
        side = self.network.factor
        return {'tokenizer': self.network.init(key, jnp.zeros((1, side, side, 3)))['params']}

    @property
    def prepared(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `prepare` makes of one example."""
        height, width, channels = self.latent
        shape = (height, width, 2 * channels if self.sample else channels)
        return {self._prepared: jax.ShapeDtypeStruct(shape, jnp.float32)}

    def prepare(self, params: Mapping[str, Any], batch: Mapping[str, Array]) -> dict[str, Array]:
        """What of an encoding no chance is in: 'moments', the latents' means and deviations, or 'latents'."""
        moments = self.moments(params, batch['image'].astype(jnp.float32) / 127.5 - 1)
        if self.sample:
            return {'moments': self._apply('gaussian', params, moments)}
        return {'latents': self._apply('normalised', params, moments[..., : self.network.channels])}

    def encode(self, params: Mapping[str, Any], batch: Mapping[str, Array], keys: Array) -> Array:
        """Latents of a batch's images, or of what was prepared of them.

        Drawn with each example's key, or the most likely ones.
        """
        known = batch if self._prepared in batch else self.prepare(params, batch)
        if not self.sample:
            return known['latents'].astype(jnp.float32)
        mean, spread = jnp.split(known['moments'].astype(jnp.float32), 2, axis=-1)
        return mean + spread * draw(jax.random.normal, keys, mean.shape[1:])

    def decode(self, params: Mapping[str, Any], latents: Array) -> Array:
        """Images of uint8, of whatever size the latents are for."""
        return jnp.clip(jnp.round((self.pixels(params, latents) + 1) * 127.5), 0, 255).astype(jnp.uint8)

    def moments(self, params: Mapping[str, Any], images: Array) -> Array:
        """Means and log-variances of the latents of images in [-1, 1], not normalised."""
        self.latent_of(*images.shape[1:3])
        return self._run('moments', params, images, self.tile, self.tile // self.network.factor)

    def pixels(self, params: Mapping[str, Any], latents: Array) -> Array:
        """Images as the network gives them, in [-1, 1] give or take."""
        z = self._apply('restored', params, latents)
        return self._run('decode', params, z, self.tile // self.network.factor, self.tile)

    @property
    def _prepared(self) -> str:
        return 'moments' if self.sample else 'latents'

    def _apply(self, method: str, params: Mapping[str, Any], x: Array) -> Array:
        return self.network.apply({'params': params['tokenizer']}, x, method=method)

    def _run(self, method: str, params: Mapping[str, Any], x: Array, tile: int, tile_out: int) -> Array:
        def run(x: Array) -> Array:
            return self._apply(method, params, x)

        if self.decoding == 'whole':
            return run(x)
        one = in_tiles(run, tile, tile_out, self.overlap) if self.decoding == 'tiled' else run
        return _one_by_one(one, x)


def _one_by_one(run: Callable[[Array], Array], x: Array) -> Array:
    """One example at a time on every device; the batch itself is split over devices, so not mapped over."""
    shards = batch_shards(len(x))
    if shards == len(x):
        return run(x)
    y = lax.map(run, jnp.moveaxis(x.reshape(shards, -1, *x.shape[1:]), 1, 0))
    return jnp.moveaxis(y, 0, 1).reshape(len(x), *y.shape[2:])


def build(
    resolution: Size = 512,
    widths: tuple[Size, ...] = (128, 256, 512, 512),
    blocks: Depth = 2,
    channels: Size = 4,
    groups: Size = 32,
    attention: tuple[Whole, ...] = (),
    middle_attention: bool = True,
    quant_conv: bool = True,
    post_quant_conv: bool = True,
    scale: Positive = 0.18215,
    shift: float | None = None,
    mean: tuple[float, ...] | None = None,
    deviation: tuple[Positive, ...] | None = None,
    sample_size: Size = 512,
    upcast: bool = True,
    dtype: Dtype = 'float32',
    sample: bool = True,
    decoding: Literal['whole', 'sliced', 'tiled', 'exact'] = 'whole',
    tile: Size | None = None,
    overlap: Part = 0.25,
    strips: Size = 16,
) -> KlVae:
    """The tokenizer for the data's resolution; the defaults are Stable Diffusion's.

    Latents are normalised by `mean` and `deviation`, a number a channel, or by `shift` alone, times `scale`.
    `decoding` says how large images are worked on, decoding and encoding: 'sliced' is one image at a time;
    'tiled' by tiles of `tile` pixels (`sample_size` by default) that overlap and are blended, each with
    norms of its own, so that the result differs from the whole's; 'exact' in `strips` of rows, the same as
    whole.
    """
    network = AutoencoderKL(
        widths=tuple(widths),
        blocks=blocks,
        channels=channels,
        groups=groups,
        attention=tuple(attention),
        middle_attention=middle_attention,
        quant_conv=quant_conv,
        post_quant_conv=post_quant_conv,
        scale=scale,
        shift=shift,
        mean=mean,
        deviation=deviation,
        sample_size=sample_size,
        upcast=upcast,
        dtype=jnp.dtype(dtype),
        strips=strips if decoding == 'exact' else 1,
    )
    return tokenizer(resolution, network, sample, decoding, tile, overlap)


def tokenizer(
    resolution: int, network: AutoencoderKL, sample: bool, decoding: str, tile: int | None, overlap: float
) -> KlVae:
    """The tokenizer around a network, once it is clear that the numbers fit."""
    factor, tile = network.factor, tile or network.sample_size
    outside = [level for level in network.attention if level >= len(network.widths)]
    if outside:
        raise ValueError(
            f'tokenizer.attention is {network.attention}; the levels are 0 to {len(network.widths) - 1}.'
        )
    narrow = [width for width in network.widths if width % network.groups]
    if narrow:
        raise ValueError(
            f'tokenizer.widths has {narrow[0]}, which tokenizer.groups, {network.groups}, does not divide.'
        )
    if resolution % factor:
        raise ValueError(
            f'{len(network.widths)} levels make {factor} pixels a latent, which does not divide the '
            f'resolution {resolution}; take another resolution or other tokenizer.widths.'
        )
    uneven = tile % factor or not (tile // factor * overlap).is_integer()
    if decoding == 'tiled' and uneven:
        raise ValueError(
            f'tokenizer.tile is {tile} and overlap {overlap}: both a tile and its overlap must be whole '
            f'numbers of latents, each {factor} pixels wide.'
        )
    statistics = [name for name in ('mean', 'deviation') if getattr(network, name) is not None]
    numbers = [len(getattr(network, name)) for name in statistics]
    if len(statistics) == 1 or any(number != network.channels for number in numbers):
        raise ValueError(
            f'tokenizer.mean and tokenizer.deviation are given together, a number for each of the '
            f'{network.channels} channels; there are {dict(zip(statistics, numbers))}.'
        )
    return KlVae(resolution, network, sample, decoding, tile, overlap)
