"""One step of DDPM's reverse chain and its variational bound (improved DDPM, arXiv:2102.09672).

The learned variance interpolates, in log space, between the posterior's variance and beta. The bound
compares the model's step with the true posterior, in bits a dimension; it trains the variance alone:
the mean is held fixed.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.path import VariancePreserving, per_example
from jaxgen.diffusion.prediction import Estimate


def posterior(path: VariancePreserving, data: Array, x: Array, t: Array) -> tuple[Array, Array, Array]:
    """Mean of q(x_previous | x_t, data), and its log variance's lower and upper bound, one an example."""
    one = 1 / path.train_steps
    alpha, variance = path.alpha(t), path.sigma(t) ** 2
    alpha_before, variance_before = path.alpha(t - one), path.sigma(t - one) ** 2
    beta = -jnp.expm1(2 * (path.log_alpha(t) - path.log_alpha(t - one)))
    mean = (
        per_example(alpha_before * beta / variance, x) * data
        + per_example(alpha / alpha_before * variance_before / variance, x) * x
    )
    # The first step's posterior has no variance: DDPM takes the second step's instead.
    second = jnp.full_like(t, 2 * one)
    beta_second = -jnp.expm1(2 * (path.log_alpha(second) - path.log_alpha(second - one)))
    smallest = beta_second * path.sigma(second - one) ** 2 / path.sigma(second) ** 2
    is_first = t < 1.5 * one
    lower = jnp.log(jnp.where(is_first, smallest, beta * variance_before / variance))
    return mean, lower, jnp.log(beta)


def model_step(estimate: Estimate) -> tuple[Array, Array]:
    """Mean and log variance of the model's own step, with its learned variance."""
    mean, lower, upper = posterior(estimate.path, estimate.data, estimate.x, estimate.t)
    share = (estimate.variance.astype(jnp.float32) + 1) / 2
    return mean, share * per_example(upper, mean) + (1 - share) * per_example(lower, mean)


def variational_bound(estimate: Estimate, data: Array) -> Array:
    """The bound's term at each example's step in bits a dimension; only the variance gets a gradient."""
    held = estimate.replace(output=jax.lax.stop_gradient(estimate.output))
    true_mean, true_log_variance, _ = posterior(estimate.path, data, estimate.x, estimate.t)
    mean, log_variance = model_step(held)
    true_log_variance = per_example(true_log_variance, mean)
    divergence = (
        log_variance
        - true_log_variance
        + jnp.exp(true_log_variance - log_variance)
        + (true_mean - mean) ** 2 * jnp.exp(-log_variance)
        - 1
    ) / 2
    likelihood = discretized_log_likelihood(data, mean, log_variance / 2)
    is_first = per_example(estimate.t < 1.5 / estimate.path.train_steps, mean).astype(bool)
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
