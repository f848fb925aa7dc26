"""The steps of DDPM's reverse chain (arXiv:2006.11239) and their variational bound (arXiv:2102.09672).

The learned variance interpolates, in log space, between the posterior's variance and beta. The bound
compares the model's step with the true posterior, in bits a dimension; it trains the variance alone:
the mean is held fixed.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.path import Path, per_example
from jaxgen.diffusion.prediction import Estimate

LEAST_SHARE = 1e-12  # onto the data it is 0, and nobody asks


def posterior(path: Path, data: Array, x: Array, t: Array, t_next: Array) -> tuple[Array, Array, Array]:
    """q(x' | x, data): its mean, the variance of the forward step from x', and its own share of that.

    With a = alpha / alpha' and the forward step's b^2 = sigma^2 - a^2 sigma'^2, it holds for any path.
    """
    alpha, sigma, alpha_next, sigma_next = (f(s) for s in (t, t_next) for f in (path.alpha, path.sigma))
    a, share = alpha / alpha_next, (sigma_next / sigma) ** 2
    forward = jnp.maximum(sigma**2 - (a * sigma_next) ** 2, 0)
    mean = per_example(alpha_next * forward / sigma**2, x) * data + per_example(a * share, x) * x
    return mean, forward, share


def log_variance(learned: Array | float, forward: Array, share: Array) -> Array:
    """That of the model's step: the posterior's where the network says -1, the forward step's where 1."""
    return jnp.log(forward) + (1 - learned) / 2 * jnp.log(jnp.maximum(share, LEAST_SHARE))


def variational_bound(estimate: Estimate, data: Array) -> Array:
    """The bound's term at each example's step in bits a dimension; only the variance gets a gradient."""
    path, x, one = estimate.path, estimate.x, 1 / estimate.path.train_steps
    t = per_example(estimate.t, x)
    held = estimate.replace(output=jax.lax.stop_gradient(estimate.output))
    true_mean, forward, share = posterior(path, data, x, t, t - one)
    mean, _, _ = posterior(path, held.data, x, t, t - one)
    # The first step's posterior has no variance: DDPM takes the second step's instead.
    is_first = t < 1.5 * one
    _, second, of_second = posterior(path, data, x, jnp.full_like(t, 2 * one), jnp.full_like(t, one))
    share = jnp.where(is_first, second * of_second / forward, share)
    true = log_variance(-1, forward, share)
    own = log_variance(estimate.variance.astype(x.dtype), forward, share)
    divergence = (own - true + jnp.exp(true - own) + (true_mean - mean) ** 2 * jnp.exp(-own) - 1) / 2
    likelihood = discretized_log_likelihood(data, mean, own / 2)
    bits = jnp.where(is_first, -likelihood, divergence) / jnp.log(2.0)
    return bits.mean(axis=tuple(range(1, bits.ndim)))


def discretized_log_likelihood(data: Array, mean: Array, log_scale: Array) -> Array:
    """Log probability of pixels of 256 levels in [-1, 1] under a Gaussian."""

    def below(edge: Array) -> Array:  # DDPM's own approximation of the normal distribution function
        z = (edge - mean) * jnp.exp(-log_scale)
        return (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * (z + 0.044715 * z**3))) / 2

    lower, upper = below(data - 1 / 255), below(data + 1 / 255)
    probability = jnp.where(data < -0.999, upper, jnp.where(data > 0.999, 1 - lower, upper - lower))
    return jnp.log(jnp.maximum(probability, 1e-12))
