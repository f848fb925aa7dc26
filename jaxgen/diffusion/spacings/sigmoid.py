"""Small steps at both ends, large ones between: a logistic curve (Lumina-Next, arXiv:2406.18583).

The curve is stretched to reach 1 and 0; the centre of its large steps and its steepness are knobs.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.config import Positive, Share
from jaxgen.diffusion.spacings import Spacing, check_positive


def build(steepness: Positive = 6.0, center: Share = 0.5) -> Spacing:
    """The spacing; center: the share of the steps after which t falls fastest."""

    def time(i: Array, steps: Array, knobs: dict) -> Array:
        share = i / jnp.asarray(steps, jnp.result_type(float))
        high, low, here = (
            jax.nn.sigmoid(knobs['steepness'] * (knobs['center'] - s)) for s in (0.0, 1.0, share)
        )
        return jnp.where(i < steps, (here - low) / (high - low), 0)  # 0 itself, not what rounds to it

    def check(knobs: Mapping[str, float]) -> None:
        check_positive(knobs, 'steepness')

    return Spacing(time, {'steepness': steepness, 'center': center}, check)
