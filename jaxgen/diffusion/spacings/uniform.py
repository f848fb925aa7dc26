"""Even steps in t."""

import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.spacings import Spacing


def uniform(i: Array, steps: Array) -> Array:
    """From 1 to 0 in even steps."""
    return (steps - i) / jnp.asarray(steps, jnp.result_type(float))


def build() -> Spacing:
    """The spacing; it has no settings."""
    return Spacing(lambda i, steps, knobs: uniform(i, steps))
