"""A Gaussian mixture under any path: exact estimates, exact flow, and orders of convergence measured on them.

All of it is closed form but the flow, which classical Runge-Kutta follows in so many steps that it is exact
to rounding. Orders are for float64: call within `jax.enable_x64(True)`.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.diffusion import loop
from jaxgen.diffusion.denoiser import Denoiser, network_denoiser
from jaxgen.diffusion.path import Path, d_alpha, d_sigma
from jaxgen.diffusion.prediction import Prediction
from jaxgen.diffusion.solvers import Solver

VELOCITY = Prediction('velocity', 'unit')


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Gaussians of the given weights, means [K][D] and spreads; x is [B, D] and t a scalar or [B]."""

    weights: tuple[float, ...] = (0.3, 0.5, 0.2)
    means: tuple[tuple[float, ...], ...] = ((-1.2,), (0.4,), (1.5,))
    spreads: tuple[float, ...] = (0.3, 0.5, 0.25)

    def _components(self, path: Path, x: Array, t: Array) -> tuple[Array, ...]:
        """Posterior weights [B, K], deviations [B, K, D], variances [B, K], alpha and sigma [B, 1]."""
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
        means, spreads = jnp.asarray(self.means, x.dtype), jnp.asarray(self.spreads, x.dtype)
        variance = (alpha * spreads) ** 2 + sigma**2
        deviation = x[:, None] - alpha[:, :, None] * means
        log_weight = jnp.log(jnp.asarray(self.weights, x.dtype)) - x.shape[-1] / 2 * jnp.log(
            2 * jnp.pi * variance
        )
        return log_weight - (deviation**2).sum(-1) / (2 * variance), deviation, variance, alpha, sigma

    def log_density(self, path: Path, x: Array, t: Array) -> Array:
        """log p_t(x), [B]."""
        return jax.nn.logsumexp(self._components(path, x, t)[0], axis=-1)

    def data(self, path: Path, x: Array, t: Array) -> Array:
        """The expected data behind x."""
        log_weight, deviation, variance, alpha, _ = self._components(path, x, t)
        gain = alpha * jnp.asarray(self.spreads, x.dtype) ** 2 / variance
        each = jnp.asarray(self.means, x.dtype) + gain[:, :, None] * deviation
        return (jax.nn.softmax(log_weight)[:, :, None] * each).sum(1)

    def noise(self, path: Path, x: Array, t: Array) -> Array:
        """The expected noise in x."""
        log_weight, deviation, variance, _, sigma = self._components(path, x, t)
        each = (sigma / variance)[:, :, None] * deviation
        return (jax.nn.softmax(log_weight)[:, :, None] * each).sum(1)

    def score(self, path: Path, x: Array, t: Array) -> Array:
        """The gradient of log p_t at x."""
        log_weight, deviation, variance, _, _ = self._components(path, x, t)
        return -(jax.nn.softmax(log_weight)[:, :, None] * deviation / variance[:, :, None]).sum(1)

    def velocity(self, path: Path, x: Array, t: Array) -> Array:
        """dx/dt of the probability flow."""
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        slopes = d_alpha(path, t)[:, None], d_sigma(path, t)[:, None]
        return slopes[0] * self.data(path, x, t) + slopes[1] * self.noise(path, x, t)

    def denoiser(self, path: Path, prediction: Prediction = VELOCITY) -> Denoiser:
        """What a perfect network of this prediction makes; it reads t, so prediction.time is 'unit'."""
        assert prediction.time == 'unit', prediction

        def network(x: Array, t: Array, cond: object) -> tuple:
            return prediction.target(path, self.data(path, x, t), self.noise(path, x, t), t), {}, None

        return network_denoiser(network, path, prediction)

    def flow(self, path: Path, x: Array, t: Array, t_next: Array, steps: int = 512) -> Array:
        """Where the probability flow carries x from t to t_next."""
        size = (jnp.asarray(t_next, x.dtype) - t) / steps

        def step(i: Array, x: Array) -> Array:
            at = t + i * size
            k1 = self.velocity(path, x, at)
            k2 = self.velocity(path, x + size / 2 * k1, at + size / 2)
            k3 = self.velocity(path, x + size / 2 * k2, at + size / 2)
            k4 = self.velocity(path, x + size * k3, at + size)
            return x + size / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

        return jax.lax.fori_loop(0, steps, step, x)

    def draw(self, path: Path, key: Array, count: int, t: float) -> Array:
        """Exact samples of p_t."""
        keys = jax.random.split(key, 3)
        which = jax.random.choice(keys[0], len(self.weights), (count,), p=jnp.asarray(self.weights))
        means, spreads = jnp.asarray(self.means), jnp.asarray(self.spreads)
        shape = (count, means.shape[1])
        data = means[which] + spreads[which, None] * jax.random.normal(keys[1], shape)
        t = jnp.asarray(t, data.dtype)
        return path.alpha(t) * data + path.sigma(t) * jax.random.normal(keys[2], shape)

    def moments(self, path: Path, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of each coordinate of p_t."""
        weights, means, spreads = (np.asarray(a) for a in (self.weights, self.means, self.spreads))
        mean = weights @ means
        variance = weights @ (means**2 + spreads[:, None] ** 2) - mean**2
        alpha, sigma = (np.asarray(f(jnp.asarray(t, float))) for f in (path.alpha, path.sigma))
        return alpha * mean, alpha**2 * variance + sigma**2


def order(
    solver: Solver,
    path: Path,
    t_from: float = 0.8,
    t_to: float = 0.2,
    steps: Sequence[int] = (16, 32, 64),
    prime: int = 0,
    prediction: Prediction = VELOCITY,
    mixture: Mixture | None = None,
) -> float:
    """The order of convergence: the slope of log error against log step over these step counts.

    prime: the first so many steps are walked exactly, so that a multistep solver's history is right. Even
    steps in t; choose the interval away from the ends.
    """
    mixture = mixture or Mixture()
    path_from, path_to = (jnp.asarray(f, jnp.float64) for f in (t_from, t_to))
    x = jnp.broadcast_to(path.sigma(path_from), (5, len(mixture.means[0])))
    x = x * jnp.linspace(-1.5, 1.5, 5)[:, None] + path.alpha(path_from) * 0.1
    keys = jax.random.split(jax.random.key(0), 5)
    denoiser = mixture.denoiser(path, prediction)

    def space(i: Array, count: Array) -> Array:
        return path_from + (path_to - path_from) * i / count

    @jax.jit
    def error(count: Array) -> Array:
        times = space(jnp.append(jnp.arange(prime + 1), count), count)
        exact = jax.vmap(lambda t: mixture.flow(path, x, path_from, t))(times)

        def keep(x: Array, t: Array) -> Array:
            index = jnp.round((t - path_from) / (path_to - path_from) * count).astype(int)
            return jnp.where(index <= prime, exact[jnp.minimum(index, prime)], x)

        found = loop.solve(denoiser, solver, space, count, x, None, keys, keep)
        return jnp.abs(found - exact[-1]).max()

    errors = [float(error(jnp.int32(count))) for count in steps]
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
