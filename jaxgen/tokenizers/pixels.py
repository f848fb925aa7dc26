"""Pixels as latents: no network, only a change of range and, where asked, blocks folded into channels.

A fold of 8 gives the [H/8, W/8] grid of a latent diffusion autoencoder, with 192 channels that lose nothing.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.config import Size
from jaxgen.layers.patches import patchify, unpatchify


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Images [B, H, W, 3] of uint8 to latents in [-1, 1] and back."""

    resolution: int
    fold: int
    trains: tuple[str, ...] = ()
    holds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reads: tuple[str, ...] = ('image',)

    @property
    def latent(self) -> tuple[int, int, int]:
        """The shape of one example's latents."""
        return self.latent_of(self.resolution, self.resolution)

    def latent_of(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape of the latents of an image of any size."""
        if height % self.fold or width % self.fold:
            raise ValueError(
                f'an image of {height} x {width} does not fold by {self.fold}; both sides must divide.'
            )
        return height // self.fold, width // self.fold, 3 * self.fold**2

    @property
    def prepared(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `prepare` makes of one example."""
        return {'image': jax.ShapeDtypeStruct((self.resolution, self.resolution, 3), jnp.uint8)}

    def init(self, key: Array) -> dict[str, Any]:
        """Pixels have no network."""
        return {}

    def prepare(self, params: Mapping[str, Any], batch: Mapping[str, Array]) -> dict[str, Array]:
        """What of an encoding can be done ahead: nothing, a picture's bytes are the smallest that it has."""
        return {'image': batch['image']}

    def encode(self, params: Mapping[str, Any], batch: Mapping[str, Array], keys: Array) -> Array:
        """Latents of a batch's images."""
        x = batch['image'].astype(jnp.float32) / 127.5 - 1
        if self.fold == 1:
            return x
        rows, columns = x.shape[1] // self.fold, x.shape[2] // self.fold
        return patchify(x, self.fold).reshape(x.shape[0], rows, columns, -1)

    def decode(self, params: Mapping[str, Any], latents: Array) -> Array:
        """Images of uint8."""
        pixels = self.pixels(params, latents)
        return jnp.clip(jnp.round((pixels + 1) * 127.5), 0, 255).astype(jnp.uint8)

    def pixels(self, params: Mapping[str, Any], latents: Array) -> Array:
        """Images in [-1, 1], give or take."""
        if self.fold == 1:
            return latents
        batch, rows, columns, width = latents.shape
        return unpatchify(latents.reshape(batch, rows * columns, width), (rows, columns), self.fold)


def build(resolution: Size, fold: Size = 1) -> Pixels:
    """The tokenizer for the data's resolution."""
    if fold < 1 or resolution % fold:
        raise ValueError(f'tokenizer.fold is {fold}; it must divide the resolution {resolution}.')
    return Pixels(resolution, fold)
