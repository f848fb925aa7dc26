"""The convolutional autoencoder around a bottleneck (VQGAN, Esser et al., "Taming Transformers", 2012.09841).

Encoder and decoder are latent diffusion's; between them a bottleneck, a part of its own, makes codes of the
latents: vector quantization, VAR's by scales (the default, at its published sizes: f16, 4,096 codes of 32
channels), lookup-free ones, or a Gaussian. A generator of codes learns and draws through it, a diffusion
model on the latents before quantization. It is trained here, by objective 'reconstruction'.
"""

# B batch, H height, W width, C channels, L tokens

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.config import Depth, Dtype, Size, Whole
from jaxgen.layers.convolution import Convolution
from jaxgen.layers.linear import Linear
from jaxgen.layers.patches import patchify, unpatchify
from jaxgen.layers.resize import resize
from jaxgen.tokenizers.bottlenecks import Quantized, Sizes, Told, as_it_is, grids, residual
from jaxgen.tokenizers.bottlenecks.learning import Learning
from jaxgen.tokenizers.convolutional import Decoder, Encoder

Params = Mapping[str, Any]
State = dict[str, Array]


class Autoencoder(nn.Module):
    """The network. `channels` are the encoder's and decoder's own, which two convolutions bring to the
    bottleneck's and back; `fold` pixels of a side go into channels before all else.
    """

    bottleneck: nn.Module
    widths: tuple[int, ...]
    blocks: int
    channels: int
    groups: int
    attention: tuple[int, ...]
    middle_attention: bool
    kernel: int
    fold: int
    dtype: Any

    def setup(self) -> None:
        shared = {
            'widths': self.widths,
            'blocks': self.blocks,
            'groups': self.groups,
            'attention': self.attention,
            'middle_attention': self.middle_attention,
        }
        layer = Convolution if self.kernel == 3 else Linear
        self.encoder = Encoder(channels=self.channels, **shared)
        self.to_latents = layer(self.bottleneck.inputs)
        self.from_latents = layer(self.channels)
        self.decoder = Decoder(channels=3 * self.fold**2, **shared)

    @property
    def factor(self) -> int:
        """Pixels to a latent, along a side."""
        return self.fold * 2 ** (len(self.widths) - 1)

    def __call__(self, x_BHWC: Array) -> Array:
        """Images through the bottleneck, on one scale, and back."""
        z = self.features(x_BHWC)
        keys = jax.random.split(jax.random.key(0), len(z))
        return self.pixels(self.bottleneck(z, (z.shape[1:3],), keys).maps[-1])

    def features(self, x_BHWC: Array) -> Array:
        """Latents before the bottleneck of images in [-1, 1]."""
        if self.fold > 1:
            x_BHWC = _folded(x_BHWC, self.fold)
        return self.to_latents(self.encoder(x_BHWC.astype(self.dtype))).astype(jnp.float32)

    def pixels(self, z_BHWC: Array) -> Array:
        """Images in [-1, 1], give or take, of latents after the bottleneck."""
        x = self.decoder(self.from_latents(z_BHWC.astype(self.dtype))).astype(jnp.float32)
        if self.fold == 1:
            return x
        return unpatchify(x.reshape(len(x), -1, x.shape[-1]), x.shape[1:3], self.fold)

    def through(self, method: str, *arguments: Any) -> Any:
        """A method of the bottleneck."""
        return getattr(self.bottleneck, method)(*arguments)


@dataclasses.dataclass(frozen=True)
class Vqgan:
    """Images [B, H, W, 3] of uint8 to latents or codes and back.

    `scales` are the grids of codes, coarse to fine; the last one is the latents'. The network trains where an
    objective trains it.
    """

    resolution: int
    network: Autoencoder
    scales: Sizes
    trains: tuple[str, ...] = ('tokenizer',)
    reads: tuple[str, ...] = ('image',)
    decodes = ('from_latents', 'decoder')  # the parameters that no latents hang on
    last = ('decoder', 'out', 'kernel')  # those that make pixels

    @property
    def holds(self) -> dict[str, nn.Module]:
        """The network, by the name of its parameters."""
        return {'tokenizer': self.network}

    @property
    def bottleneck(self) -> nn.Module:
        """What the latents pass through."""
        return self.network.bottleneck

    @property
    def vocabulary(self) -> int:
        """The number of codes."""
        return self.bottleneck.vocabulary

    @property
    def provides(self) -> dict[str, Any]:
        """What a network's build may ask for by name."""
        return {'scales': self.scales, 'codes': self.vocabulary} if self.vocabulary else {}

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
        return height // factor, width // factor, self.bottleneck.channels

    def at(self, scales: tuple[int | tuple[int, int], ...]) -> 'Vqgan':
        """The same with other scales."""
        return dataclasses.replace(self, scales=grids(scales))

    def init(self, key: Array) -> Params:
        """Fresh parameters."""
        side = self.network.factor
        return {'tokenizer': self.network.init(key, jnp.zeros((1, side, side, 3)))['params']}

    @property
    def prepared(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `prepare` makes of one example."""
        shape = (*self.latent[:2], self.bottleneck.inputs)
        return {'latents': jax.ShapeDtypeStruct(shape, jnp.float32)}

    def prepare(self, params: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
        """What of an encoding no chance is in: the latents before the bottleneck."""
        return {'latents': self.features(params, batch['image'].astype(jnp.float32) / 127.5 - 1)}

    def encode(self, params: Params, batch: Mapping[str, Array], keys: Array) -> Array:
        """Latents of a batch's images, or of what was prepared of them, not quantized yet."""
        known = batch if 'latents' in batch else self.prepare(params, batch)
        latents = known['latents'].astype(jnp.float32)
        return self.bottleneck.drawn(latents, keys) if hasattr(self.bottleneck, 'drawn') else latents

    def features(self, params: Params, images: Array) -> Array:
        """Latents before the bottleneck of images in [-1, 1]."""
        self.latent_of(*images.shape[1:3])
        return self._apply('features', params, images)

    def codes(self, params: Params, images: Array) -> tuple[Array, ...]:
        """Codes of images in [-1, 1]: int32 [B, L], one a scale, in reading order."""
        return self.quantize(params, self.features(params, images))

    def quantize(self, params: Params, latents: Array, told: Told = as_it_is) -> tuple[Array, ...]:
        """Codes of latents; where scales build on others, on what `told(k, codes)` makes of these."""
        return self._through('encode', params, latents, self.scales, told)

    def embed(self, params: Params, codes: tuple[Array, ...]) -> Array:
        """Latents as the decoder takes them, of codes of all scales."""
        return self._through('embed', params, codes, self.scales)

    def vectors(self, params: Params, codes: Array) -> Array:
        """The vectors [..., C] that codes stand for."""
        return self._through('lookup', params, codes)

    def start(self, batch: int) -> Array:
        """What there is before the first scale."""
        return jnp.zeros((batch, *self.scales[-1], self.bottleneck.channels))

    def feedback(self, params: Params, k: int, codes: Array, so_far: Array) -> tuple[Array, Array | None]:
        """What there is after scale k, and what a generator is given for scale k + 1: [B, L, C], if any.

        codes: int32 [B, L] of scale k, or vectors [B, L, C] where they are soft.
        """
        vectors = codes if jnp.issubdtype(codes.dtype, jnp.floating) else self.vectors(params, codes)
        return self._through('feedback', params, vectors, so_far, k, self.scales)

    def teacher(self, params: Params, codes: tuple[Array, ...]) -> Array:
        """What a generator is given for all scales but the first, side by side."""
        return self._through('teacher', params, codes, self.scales)

    def decode(self, params: Params, latents: Array) -> Array:
        """Images of uint8, of whatever size the latents are for."""
        return jnp.clip(jnp.round((self.pixels(params, latents) + 1) * 127.5), 0, 255).astype(jnp.uint8)

    def pixels(self, params: Params, latents: Array) -> Array:
        """Images as the network gives them, in [-1, 1] give or take."""
        return self._apply('pixels', params, latents)

    def state(self) -> State:
        """What the bottleneck learns without gradients, before the first step."""
        learning = self.bottleneck.learning
        return learning.init(self.vocabulary, self.bottleneck.channels) if learning else {}

    def forward(
        self, params: Params, images: Array, state: State, keys: Array
    ) -> tuple[tuple[Array, ...], Quantized, State]:
        """Reconstructions of images in [-1, 1], by scales where each is a picture; how; and the state after.

        Until the bottleneck's codebook begins, latents pass as they are.
        """
        z = self.features(params, images)
        found: Quantized = self._through('__call__', params, z, self.scales, random.fold(keys, 'quantize'))
        maps, loss, learning = found.maps, found.loss, self.bottleneck.learning
        metrics = dict(found.metrics)
        if learning:
            table = params['tokenizer']['bottleneck']['codebook']['table']
            samples = self._through('samples', params, z, self.scales)
            key = random.fold(keys[0], 'codebook')
            after = learning.step(state, table, found, samples, self.bottleneck.distance, key)
            if learning.begins:
                on = learning.quantizes(state)
                sides = [a.shape[1:3] for a in maps]
                as_they_are = [self._through('begin', params, resize(z, side, 'area')) for side in sides]
                maps = tuple(jnp.where(on, *pair) for pair in zip(maps, as_they_are))
                loss = jnp.where(on, loss, 0.0)
            metrics['usage'] = jnp.broadcast_to(learning.in_use(after), len(z))
            state = after
        pictures = tuple(self.pixels(params, z) for z in maps)
        return pictures, found.replace(maps=maps, loss=loss, metrics=metrics), state

    @property
    def loose(self) -> frozenset[str]:
        """Settings of the bottleneck that once it is trained may be others.

        How its codes were learned, and scales where each is a picture of its own.
        """
        learned = {field.name for field in dataclasses.fields(Learning)} | {'commitment', 'gradient'}
        return frozenset(learned | ({'scales'} if getattr(self.bottleneck, 'apart', False) else set()))

    @property
    def settles(self) -> bool:
        """Whether the state ever says something of the parameters."""
        return bool(self.bottleneck.learning) and self.bottleneck.learning.writes

    def settled(self, params: Params, state: State) -> Params:
        """Parameters with what the state says of the codebook."""
        tree = dict(params['tokenizer'])
        inner = dict(tree['bottleneck'])
        table = self.bottleneck.learning.settled(inner['codebook']['table'], state)
        tree['bottleneck'] = inner | {'codebook': {**inner['codebook'], 'table': table}}
        return {**params, 'tokenizer': tree}

    def _apply(self, method: str, params: Params, *arguments: Any) -> Any:
        return self.network.apply({'params': params['tokenizer']}, *arguments, method=method)

    def _through(self, method: str, params: Params, *arguments: Any) -> Any:
        if self.vocabulary is None and method != '__call__':
            raise ValueError(
                f'this tokenizer has no codes: its bottleneck is a {type(self.bottleneck).__name__}.'
            )
        return self._apply('through', params, method, *arguments)


def build(
    resolution: Size = 256,
    bottleneck: Any = None,
    widths: tuple[Size, ...] = (160, 160, 320, 320, 640),
    blocks: Depth = 2,
    channels: Size | None = None,
    groups: Size = 32,
    attention: tuple[Whole, ...] = (4,),
    middle_attention: bool = True,
    kernel: Literal[1, 3] = 3,
    fold: Size = 1,
    dtype: Dtype = 'float32',
) -> Vqgan:
    """The tokenizer for the data's resolution; the defaults are VAR's published one.

    bottleneck: a part of tokenizers.bottlenecks. channels: the encoder's, the bottleneck's own if not given.
    kernel: the side of the convolutions before and after it. fold: pixels of a side that go into channels.
    """
    bottleneck = bottleneck or residual.build()
    if not hasattr(bottleneck, 'inputs'):
        raise ValueError(f'tokenizer.bottleneck is {bottleneck!r}; give a section with the name of one.')
    outside = [level for level in attention if level >= len(widths)]
    if outside or not widths:
        raise ValueError(f'tokenizer.attention is {attention}; the levels are 0 to {len(widths) - 1}.')
    narrow = [width for width in widths if width % groups]
    if narrow:
        raise ValueError(
            f'tokenizer.widths has {narrow[0]}, which tokenizer.groups, {groups}, does not divide.'
        )
    network = Autoencoder(
        bottleneck,
        tuple(widths),
        blocks,
        channels or bottleneck.channels,
        groups,
        tuple(attention),
        middle_attention,
        kernel,
        fold,
        jnp.dtype(dtype),
    )
    if resolution % network.factor:
        raise ValueError(
            f'{len(widths)} levels and a fold of {fold} make {network.factor} pixels a latent, which does '
            f'not divide the resolution {resolution}; take another resolution or other tokenizer.widths.'
        )
    side = resolution // network.factor
    scales = bottleneck.scales or ((side, side),)
    if scales[-1] != (side, side):
        raise ValueError(
            f'bottleneck.scales end with {scales[-1]}, and the latents are {side} x {side}; end with {side}.'
        )
    return Vqgan(resolution, network, scales)


def _folded(x_BHWC: Array, fold: int) -> Array:
    batch, height, width, _ = x_BHWC.shape
    return patchify(x_BHWC, fold).reshape(batch, height // fold, width // fold, -1)
