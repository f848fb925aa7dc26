"""Where a solver's steps stand: functions of (i, steps) from t = 1 at i = 0 to t = 0 at i = steps.

Both arguments are traced, so another number of steps compiles nothing.
"""

import jax.numpy as jnp
from jax import Array


def uniform(i: Array, steps: Array, shift: Array = 1.0) -> Array:
    """Even steps, moved towards the noise by `shift` (SD3, arXiv:2403.03206)."""
    t = 1 - i / jnp.asarray(steps, jnp.result_type(float))
    return shift * t / (1 + (shift - 1) * t)
