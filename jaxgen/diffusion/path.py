"""The path from data to noise: x_t = alpha(t) data + sigma(t) noise, for t in [0, 1] with 1 = noise.

Linear flow (rectified flow, arXiv:2209.03003), variance-preserving diffusion on its discrete training
steps (DDPM, arXiv:2006.11239; cosine, arXiv:2102.09672) and in continuous time (arXiv:2011.13456), the
trigonometric path GVP (SiT, arXiv:2401.08740) and the variance-exploding one (EDM, arXiv:2206.00364).
Nothing else in the library knows a noise schedule.
"""

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.config import Inside, Positive, Size


class Path(Protocol):
    """alpha and sigma are functions of t; everything else follows from them."""

    def alpha(self, t: Array) -> Array: ...

    def sigma(self, t: Array) -> Array: ...

    def time(self, log_snr: Array) -> Array:
        """The t at which the path has this log signal-to-noise ratio."""
        ...


def d_alpha(path: Path, t: Array) -> Array:
    """alpha'(t)."""
    return jax.jvp(path.alpha, (t,), (jnp.ones_like(t),))[1]


def d_sigma(path: Path, t: Array) -> Array:
    """sigma'(t)."""
    return jax.jvp(path.sigma, (t,), (jnp.ones_like(t),))[1]


def log_snr(path: Path, t: Array) -> Array:
    """log(alpha^2 / sigma^2): plus infinity at the data, minus infinity at pure noise."""
    return 2 * (jnp.log(path.alpha(t)) - jnp.log(path.sigma(t)))


def ends_in_noise(path: Path) -> bool:
    """Whether nothing of the data is left at t = 1."""
    with jax.ensure_compile_time_eval():
        return bool(path.alpha(jnp.float32(1)) < 1e-5)


def interpolate(path: Path, data: Array, noise: Array, t: Array) -> Array:
    """The noisy example x_t, with one t an example."""
    return per_example(path.alpha(t), data) * data + per_example(path.sigma(t), data) * noise


def per_example(values: Array, like: Array) -> Array:
    """Values of shape [B] (or a scalar) shaped to broadcast against `like` of shape [B, ...]."""
    values = jnp.asarray(values, like.dtype)
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim)) if values.ndim else values


@dataclasses.dataclass(frozen=True)
class Linear:
    """Straight lines: alpha = 1 - t, sigma = t."""

    def alpha(self, t: Array) -> Array:
        return 1 - t

    def sigma(self, t: Array) -> Array:
        return t

    def time(self, log_snr: Array) -> Array:
        return jax.nn.sigmoid(-log_snr / 2)


@dataclasses.dataclass(frozen=True)
class Gvp:
    """Trigonometric and variance-preserving: alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""

    def alpha(self, t: Array) -> Array:
        return jnp.cos(jnp.pi / 2 * t)

    def sigma(self, t: Array) -> Array:
        return jnp.sin(jnp.pi / 2 * t)

    def time(self, log_snr: Array) -> Array:
        return 2 / jnp.pi * jnp.arctan(jnp.exp(-log_snr / 2))


@dataclasses.dataclass(frozen=True)
class VariancePreserving:
    """DDPM's discrete betas: training step k of K stands at t = (k + 1) / K, data at t = 0.

    Between training steps log alpha is linear in t, as in DPM-Solver (arXiv:2206.00927).
    """

    betas: str = 'linear'
    train_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2

    def log_alpha(self, t: Array) -> Array:
        grid, table = self._tables(t.dtype)
        return jnp.interp(t, grid, table)

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(2 * self.log_alpha(t)))

    def time(self, log_snr: Array) -> Array:
        grid, table = self._tables(log_snr.dtype)
        log_alpha = -jax.nn.softplus(-log_snr) / 2
        return jnp.interp(-log_alpha, -table, grid)

    def _tables(self, dtype: jnp.dtype) -> tuple[Array, Array]:
        table = _log_alpha_table(self.betas, self.train_steps, self.beta_start, self.beta_end)
        grid = np.linspace(0, 1, self.train_steps + 1)
        return jnp.asarray(grid, dtype), jnp.asarray(table, dtype)


@functools.cache
def beta_table(betas: str, steps: int, start: float, end: float) -> np.ndarray:
    """The betas of the training steps in float64."""
    if betas == 'linear':
        return np.linspace(start, end, steps)
    if betas == 'scaled_linear':
        return np.linspace(start**0.5, end**0.5, steps) ** 2
    edges = np.cos((np.linspace(0, 1, steps + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - edges[1:] / edges[:-1], 0.999)


@functools.cache
def _log_alpha_table(betas: str, steps: int, start: float, end: float) -> np.ndarray:
    log_alpha = np.cumsum(np.log1p(-beta_table(betas, steps, start, end))) / 2
    return np.concatenate([[0.0], log_alpha])


@dataclasses.dataclass(frozen=True)
class ContinuousVariancePreserving:
    """VP in continuous time, as SiT has it: beta(t) = beta_min + t (beta_max - beta_min)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_alpha(self, t: Array) -> Array:
        return -t * (self.beta_min / 2 + t * (self.beta_max - self.beta_min) / 4)

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self.log_alpha(t))

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(2 * self.log_alpha(t)))

    def time(self, log_snr: Array) -> Array:
        lost = jax.nn.softplus(-log_snr) / 2  # -log alpha, a quadratic in t
        linear, square = self.beta_min / 2, (self.beta_max - self.beta_min) / 4
        return 2 * lost / (linear + jnp.sqrt(linear**2 + 4 * square * lost))


@dataclasses.dataclass(frozen=True)
class VarianceExploding:
    """EDM's: alpha = 1, sigma grows in proportion to t, so that dx/dt is EDM's dx/dsigma."""

    sigma_max: float = 80.0

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        return self.sigma_max * t

    def time(self, log_snr: Array) -> Array:
        return jnp.exp(-log_snr / 2) / self.sigma_max


BETAS = ('linear', 'scaled_linear', 'cosine')


def build(
    name: str = 'linear',
    betas: str = 'linear',
    train_steps: Size = 1000,
    beta_start: Inside = 1e-4,
    beta_end: Inside = 2e-2,
    beta_min: Positive = 0.1,
    beta_max: Positive = 20.0,
    sigma_max: Positive = 80.0,
) -> Path:
    """A path by name: 'linear', 'gvp', 'vp' (with its betas), 'vp_continuous' or 've'.

    beta_start and beta_end are those of 'vp', a training step; beta_min and beta_max of 'vp_continuous'.
    """
    if name == 'linear':
        return Linear()
    if name == 'gvp':
        return Gvp()
    if name == 've':
        return VarianceExploding(sigma_max)
    if name == 'vp_continuous':
        if not 0 < beta_min < beta_max:
            raise ValueError(
                f'path.beta_min is {beta_min} and beta_max {beta_max}; above 0, and beta_min the smaller.'
            )
        return ContinuousVariancePreserving(beta_min, beta_max)
    if name != 'vp':
        raise ValueError(f"path.name is '{name}'; it can be 'linear', 'gvp', 'vp', 'vp_continuous' or 've'.")
    if betas not in BETAS:
        raise ValueError(f"path.betas is '{betas}'; it can be one of {', '.join(BETAS)}.")
    return VariancePreserving(betas, train_steps, beta_start, beta_end)
