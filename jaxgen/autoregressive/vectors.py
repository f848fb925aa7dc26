"""Tokens that are vectors of reals, drawn from mixtures of Gaussians (GIVT, Tschannen et al., 2312.02116).

A network says of each token how much each of k Gaussians weighs and of each its mean and deviation in every
channel. Guidance is of densities: a component of the conditional mixture is drawn, and a vector by
p(x | c)^s p(x)^(1-s) of this component with the condition and without. The authors draw from that by
rejection; as it is itself a Gaussian wherever it is a density at all, nothing need be rejected here.
"""

# B batch, N tokens, L of some, K components, C channels

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.autoregressive import choose

Params = Mapping[str, Any]
Knobs = Mapping[str, Array]
LEAST = 1e-6  # a deviation at least
# Guided deviations of more than so many times the wider one are taken for none, as published proposals,
# which are as wide, would hardly find them.
WIDEST = 2.0


@flax.struct.dataclass
class Mixture:
    """Logits [..., K] of components, and their means and deviations [..., K, C]."""

    logits: Array
    means: Array
    deviations: Array


def mixture(out: Array, channels: int) -> Mixture:
    """What a network says as a mixture: of [..., K + 2 K C] logits, and means and deviations by turns.

    Deviations are square-plus of what is said, (s + sqrt(s^2 + 4)) / 2, which is 1 at 0.
    """
    count, left = divmod(out.shape[-1], 1 + 2 * channels)
    if left or not count:
        raise ValueError(
            f'the network says {out.shape[-1]} numbers of a token, of which no mixture of Gaussians over '
            f"{channels} channels has so many; take model.name='givt'."
        )
    out = out.astype(jnp.float32)
    pairs = out[..., count:].reshape(*out.shape[:-1], count, 2, channels)
    means, said = pairs[..., 0, :], pairs[..., 1, :]
    return Mixture(out[..., :count], means, jnp.maximum((said + jnp.sqrt(said**2 + 4)) / 2, LEAST))


def log_density(of: Mixture, tokens: Array) -> Array:
    """The logarithm of a mixture's density at tokens [..., C]."""
    logs = normal_log_density(tokens[..., None, :], of.means, of.deviations).sum(-1)
    return jax.nn.logsumexp(jax.nn.log_softmax(of.logits) + logs, axis=-1)


def normal_log_density(x: Array, mean: Array, deviation: Array) -> Array:
    """Of Gaussians, one a channel."""
    return -0.5 * (((x - mean) / deviation) ** 2 + math.log(2 * math.pi)) - jnp.log(deviation)


def guided(
    mean: Array, deviation: Array, null_mean: Array, null_deviation: Array, scale: Array
) -> tuple[Array, Array]:
    """Mean and deviation of the density that is as N(mean, deviation)^scale N(null)^(1 - scale).

    Where there is no such density, or it is much wider than both, they are those without guidance.
    """
    share, null_share = scale / deviation**2, (1 - scale) / null_deviation**2
    precision = share + null_share
    found = precision * (WIDEST * jnp.maximum(deviation, null_deviation)) ** 2 >= 1
    precision = jnp.where(found, precision, 1.0)
    middle = (share * mean + null_share * null_mean) / precision
    return jnp.where(found, middle, mean), jnp.where(found, precision**-0.5, deviation)


@dataclasses.dataclass(frozen=True)
class Vectors:
    """The latents of a tokenizer without codes, one token for each place."""

    tokenizer: Any

    @property
    def scales(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of tokens."""
        return (tuple(self.tokenizer.latent[:2]),)

    def tokens(self, params: Params, latents: Array) -> Array:
        """Latents in reading order, [B, N, C]."""
        return latents.reshape(len(latents), -1, latents.shape[-1])

    def latents(self, params: Params, tokens: Array) -> Array:
        """Latents of tokens."""
        return tokens.reshape(len(tokens), *self.tokenizer.latent)

    def empty(self, batch: int) -> Array:
        """Zeros [B, N, C]."""
        rows, columns, channels = self.tokenizer.latent
        return jnp.zeros((batch, rows * columns, channels))

    def loss(self, out: Array, tokens: Array, smoothing: float = 0.0) -> Array:
        """The negative logarithm of the density at tokens, in nats."""
        if smoothing:
            raise ValueError(f'objective.smoothing is {smoothing}, and vectors have no other ones; set it 0.')
        return -log_density(mixture(out, tokens.shape[-1]), tokens.astype(jnp.float32))

    def drawn(self, out_of_both: Array, keys_B: Array, knobs: Knobs) -> tuple[Array, Array]:
        """Vectors by guided densities, whose deviations are multiplied by the temperature.

        `top_k` and `top_p` are of components. How likely vectors are is told before temperature and cuts.
        """
        channels = self.tokenizer.latent[-1]
        positive, negative = (mixture(half, channels) for half in jnp.split(out_of_both, 2))
        logits = choose.likeliest(positive.logits, knobs['top_k'], knobs['top_p'])
        component_BL = choose.drawn(logits, random.fold(keys_B, 'component'))
        parts = (
            jnp.take_along_axis(part, component_BL[..., None, None], axis=2)[:, :, 0] * factor
            for of in (positive, negative)
            for part, factor in ((of.means, 1.0), (of.deviations, knobs['temperature']))
        )
        mean, deviation = guided(*parts, knobs['guidance'])
        noise = random.draw(jax.random.normal, random.fold(keys_B, 'vector'), mean.shape[1:])
        tokens = mean + deviation * noise
        with_it, without = (log_density(of, tokens) for of in (positive, negative))
        return tokens, without + knobs['guidance'] * (with_it - without)
