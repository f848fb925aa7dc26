"""EDM's steps (arXiv:2206.00364): even in (sigma / alpha)^(1 / rho), then the data.

On other paths than EDM's own, sigma is the noise relative to the data.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from jaxgen.config import Positive
from jaxgen.diffusion.path import Path
from jaxgen.diffusion.spacings import Spacing, check_positive, check_range, noise_range


def noise_levels(i: Array, steps: Array, rho: Array, sigma_min: Array, sigma_max: Array) -> Array:
    """sigma / alpha before step i, without the last step to the data."""
    share = i / jnp.maximum(jnp.asarray(steps, jnp.result_type(float)) - 1, 1)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return jnp.maximum(high + share * (low - high), 0) ** rho


def build(
    path: Path, rho: Positive = 7.0, sigma_min: Positive | None = None, sigma_max: Positive | None = None
) -> Spacing:
    """The spacing; without sigma_min and sigma_max, from end to end of the path."""
    low, high = noise_range(path, sigma_min, sigma_max)

    def time(i: Array, steps: Array, knobs: dict) -> Array:
        sigma = noise_levels(i, steps, knobs['rho'], knobs['sigma_min'], knobs['sigma_max'])
        return jnp.where(i < steps, path.time(-2 * jnp.log(sigma)), 0)

    def check(knobs: Mapping[str, float]) -> None:
        check_range(knobs)
        check_positive(knobs, 'rho')

    return Spacing(time, {'rho': rho, 'sigma_min': low, 'sigma_max': high}, check)
