"""Even steps in log-SNR (DPM-Solver, arXiv:2206.00927), then the data."""

import jax.numpy as jnp
from jax import Array

from jaxgen.config import Positive
from jaxgen.diffusion.path import Path
from jaxgen.diffusion.spacings import Spacing, check_range, noise_range


def build(path: Path, sigma_min: Positive | None = None, sigma_max: Positive | None = None) -> Spacing:
    """The spacing; sigma_min and sigma_max, of sigma / alpha, are the path's own where not given."""
    low, high = noise_range(path, sigma_min, sigma_max)

    def time(i: Array, steps: Array, knobs: dict) -> Array:
        share = i / jnp.maximum(jnp.asarray(steps, jnp.result_type(float)) - 1, 1)
        first, last = -2 * jnp.log(knobs['sigma_max']), -2 * jnp.log(knobs['sigma_min'])
        return jnp.where(i < steps, path.time(first + share * (last - first)), 0)

    return Spacing(time, {'sigma_min': low, 'sigma_max': high}, check_range)
