"""VA-VAE (Yao et al., "Reconstruction vs. Generation", 2501.01423): the autoencoder under LightningDiT.

Latent diffusion's network at f16 with 32 channels, trained so that its latents agree with a vision foundation
model's features. Its latents are normalised channel by channel with statistics measured on the training set,
which are published beside the weights and are parameters here.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxgen.config import Depth, Dtype, Part, Positive, Size, Whole
from jaxgen.tokenizers.kl_vae import AutoencoderKL, KlVae, tokenizer


class Statistics(nn.Module):
    """The latents' mean and standard deviation, a number a channel; they do nothing until they are loaded."""

    channels: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        mean = self.param('mean', nn.initializers.zeros, (self.channels,))
        deviation = self.param('deviation', nn.initializers.ones, (self.channels,))
        return mean.astype(jnp.float32), deviation.astype(jnp.float32)


class AlignedAutoencoder(AutoencoderKL):
    """The network; `scale` is LightningDiT's latent multiplier."""

    def setup(self) -> None:
        super().setup()
        self.statistics = Statistics(self.channels)

    def normalisation(self) -> tuple[Array, Array]:
        """Mean and standard deviation that latents are normalised by."""
        return self.statistics()


def build(
    resolution: Size = 256,
    widths: tuple[Size, ...] = (128, 128, 256, 256, 512),
    blocks: Depth = 2,
    channels: Size = 32,
    groups: Size = 32,
    attention: tuple[Whole, ...] = (4,),
    scale: Positive = 1.0,
    dtype: Dtype = 'float32',
    sample: bool = True,
    decoding: Literal['whole', 'sliced', 'tiled', 'exact'] = 'whole',
    tile: Size = 256,
    overlap: Part = 0.25,
    strips: Size = 16,
) -> KlVae:
    """The tokenizer for the data's resolution; `decoding` and what follows as for tokenizers.kl_vae."""
    network = AlignedAutoencoder(
        widths=tuple(widths),
        blocks=blocks,
        channels=channels,
        groups=groups,
        attention=tuple(attention),
        middle_attention=True,
        quant_conv=True,
        post_quant_conv=True,
        scale=scale,
        shift=None,
        mean=None,
        deviation=None,
        sample_size=256,
        upcast=False,
        dtype=jnp.dtype(dtype),
        strips=strips if decoding == 'exact' else 1,
    )
    return tokenizer(resolution, network, sample, decoding, tile, overlap)
