"""What a network is given and what its output means; the one place that converts between predictions.

A network may predict the noise (DDPM), the data, v = alpha noise - sigma data (arXiv:2202.00512), the
velocity dx/dt (flow matching, arXiv:2210.02747), the score (SiT, arXiv:2401.08740) or EDM's F
(arXiv:2206.00364), with or without the learned variance of arXiv:2102.09672. `Estimate` turns any of
them into any other. What holds where alpha or sigma is zero is decided here and nowhere else.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.config import Positive
from jaxgen.diffusion.path import Path, d_alpha, d_sigma, ends_in_noise, per_example

OUTPUTS = ('noise', 'data', 'v', 'velocity', 'score', 'edm')
TIMES = ('unit', 'reversed', 'thousand', 'steps', 'log_sigma')
TINY = 1e-6
NEAR = 1e-3  # how near SiT goes to an end that has no limit


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Both sides of a network's convention.

    output: one of OUTPUTS. time: what the network reads as its t: 'unit' is t, 'reversed' 1 - t (and
    velocities point from noise to data, as in SiT), 'thousand' 1000 t, 'steps' the integer training
    step of a variance-preserving path, 'log_sigma' EDM's log(sigma) / 4.
    """

    output: str = 'velocity'
    time: str = 'thousand'
    learned_variance: bool = False
    sigma_data: float = 0.5

    def inputs(self, path: Path, x: Array, t: Array) -> tuple[Array, Array]:
        """The network's x and t for the noisy x at time t, [B]."""
        if self.time == 'unit':
            t_in = t
        elif self.time == 'reversed':
            t_in = 1 - t
        elif self.time == 'thousand':
            t_in = 1000 * t
        elif self.time == 'steps':
            t_in = path.train_steps * t - 1
        else:
            t_in = jnp.log(jnp.maximum(path.sigma(t), TINY) / jnp.maximum(path.alpha(t), TINY)) / 4
        if self.output == 'edm':
            alpha, sigma = path.alpha(t), path.sigma(t)
            x = x * per_example((sigma**2 + (alpha * self.sigma_data) ** 2) ** -0.5, x)
        return x, t_in

    def estimate(self, path: Path, x: Array, t: Array, output: Array) -> 'Estimate':
        """What the network's output says of x at time t."""
        variance, channels = None, x.shape[-1] * (2 if self.learned_variance else 1)
        if output.shape[-1] != channels:
            raise ValueError(
                f'the network puts out {output.shape[-1]} channels, and the prediction has {channels}: '
                "the latents', twice with a learned variance; build the network with them."
            )
        if self.learned_variance:
            output, variance = jnp.split(output, 2, axis=-1)
        return Estimate(x, t, output.astype(x.dtype), variance, path, self)

    def target(self, path: Path, data: Array, noise: Array, t: Array) -> Array:
        """What a perfect network would put out."""
        alpha, sigma = per_example(path.alpha(t), data), per_example(path.sigma(t), data)
        if self.output == 'noise':
            return noise
        if self.output == 'data':
            return data
        if self.output == 'v':
            return alpha * noise - sigma * data
        if self.output == 'velocity':
            slope_alpha, slope_sigma = slopes(path, t, data)
            return self._sign * (slope_alpha * data + slope_sigma * noise)
        if self.output == 'score':
            return -noise / jnp.maximum(sigma, TINY)
        skip, scale = self._edm_scales(alpha, sigma)
        return (data - skip * (alpha * data + sigma * noise)) / scale

    def size(self, path: Path, t: Array) -> Array:
        """By what losses divide an output's error: 1 / sigma for a score, which has no bound, else 1."""
        return 1 / jnp.maximum(path.sigma(t), TINY) if self.output == 'score' else jnp.ones_like(t)

    @property
    def _sign(self) -> float:
        return -1.0 if self.time == 'reversed' else 1.0

    def _edm_scales(self, alpha: Array, sigma: Array) -> tuple[Array, Array]:
        total = sigma**2 + (alpha * self.sigma_data) ** 2
        return alpha * self.sigma_data**2 / total, sigma * self.sigma_data / jnp.sqrt(total)


def slopes(path: Path, t: Array, like: Array) -> tuple[Array, Array]:
    """alpha' and sigma', shaped for `like`; at t = 0, where sigma' may have no bound, just before it."""
    t = jnp.maximum(t, TINY)
    return per_example(d_alpha(path, t), like), per_example(d_sigma(path, t), like)


def span(path: Path, prediction: Prediction) -> tuple[float, float]:
    """The times, by the data and by the noise, between which such a network tells dx/dt."""
    blind = prediction.output in ('noise', 'score') and ends_in_noise(path)
    with jax.ensure_compile_time_eval():
        steep = d_sigma(path, jnp.float32(TINY)) > 100 * path.sigma(jnp.float32(1))
    return NEAR if steep or prediction.output != 'velocity' else 0.0, 1 - NEAR if blind else 1.0


@flax.struct.dataclass
class Estimate:
    """A network's opinion at (x, t), readable as data, noise, velocity or score."""

    x: Array
    t: Array
    output: Array
    variance: Array | None
    path: Path = flax.struct.field(pytree_node=False)
    prediction: Prediction = flax.struct.field(pytree_node=False)

    @property
    def alpha(self) -> Array:
        return per_example(self.path.alpha(self.t), self.x)

    @property
    def sigma(self) -> Array:
        return per_example(self.path.sigma(self.t), self.x)

    @property
    def data(self) -> Array:
        """The clean example."""
        kind, x, alpha, sigma = self.prediction.output, self.x, self.alpha, self.sigma
        if kind == 'data':
            return self.output
        if kind == 'noise':
            return (x - sigma * self.output) / jnp.maximum(alpha, TINY)
        if kind == 'v':
            return (alpha * x - sigma * self.output) / (alpha**2 + sigma**2)
        if kind == 'velocity':
            slope_alpha, slope_sigma = slopes(self.path, self.t, self.x)
            velocity = self.prediction._sign * self.output
            return (slope_sigma * x - sigma * velocity) / (alpha * slope_sigma - sigma * slope_alpha)
        if kind == 'score':
            return (x + sigma**2 * self.output) / jnp.maximum(alpha, TINY)
        skip, scale = self.prediction._edm_scales(alpha, sigma)
        return skip * x + scale * self.output

    @property
    def noise(self) -> Array:
        """The noise in x."""
        kind, x, alpha, sigma = self.prediction.output, self.x, self.alpha, self.sigma
        if kind == 'noise':
            return self.output
        if kind == 'v':
            return (sigma * x + alpha * self.output) / (alpha**2 + sigma**2)
        if kind == 'velocity':
            slope_alpha, slope_sigma = slopes(self.path, self.t, self.x)
            velocity = self.prediction._sign * self.output
            return (alpha * velocity - slope_alpha * x) / (alpha * slope_sigma - sigma * slope_alpha)
        if kind == 'score':
            return -sigma * self.output
        return (x - alpha * self.data) / jnp.maximum(sigma, TINY)

    @property
    def velocity(self) -> Array:
        """dx/dt along the probability flow."""
        if self.prediction.output == 'velocity':
            return self.prediction._sign * self.output
        slope_alpha, slope_sigma = slopes(self.path, self.t, self.x)
        return slope_alpha * self.data + slope_sigma * self.noise

    @property
    def score(self) -> Array:
        """The gradient of log density at x."""
        if self.prediction.output == 'score':
            return self.output
        return -self.noise / jnp.maximum(self.sigma, TINY)


def build(
    output: str = 'velocity',
    time: str = 'thousand',
    learned_variance: bool = False,
    sigma_data: Positive = 0.5,
    path: Path | None = None,
) -> Prediction:
    """A checked Prediction; `path` is the recipe's, to refuse what does not fit it."""
    if output not in OUTPUTS:
        raise ValueError(f"prediction.output is '{output}'; it can be one of {', '.join(OUTPUTS)}.")
    if time not in TIMES:
        raise ValueError(f"prediction.time is '{time}'; it can be one of {', '.join(TIMES)}.")
    discrete = hasattr(path, 'train_steps')
    if path is not None and time == 'steps' and not discrete:
        raise ValueError(
            "prediction.time 'steps' needs a path with training steps: set path.name='vp', "
            "or prediction.time='thousand'."
        )
    if path is not None and learned_variance and not (discrete and output == 'noise'):
        raise ValueError(
            "prediction.learned_variance needs path.name='vp' and prediction.output='noise', "
            f"not output '{output}'; set learned_variance=False."
        )
    return Prediction(output, time, learned_variance, sigma_data)
