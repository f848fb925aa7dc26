"""Where a solver's steps stand, one way a file, each with `build() -> Spacing`.

A spacing is a function of the step and of the number of steps, both traced, so that another number of steps
compiles nothing; its settings are knobs, traced too.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.path import Path, ends_in_noise
from jaxgen.diffusion.prediction import NEAR


@dataclasses.dataclass(frozen=True)
class Spacing:
    """`time(i, steps, knobs) -> t`, from the noise at i = 0 down to 0 at i = steps.

    knobs: the settings that stay traced, with their defaults; `check(knobs)` refuses what makes no sense.
    max_steps: where the steps come from a table, how many it holds.
    """

    time: Callable[[Array, Array, Mapping[str, Array]], Array]
    knobs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    check: Callable[[Mapping[str, float]], None] = lambda knobs: None
    max_steps: int | None = None


def shifted(t: Array, shift: Array) -> Array:
    """Steps moved towards the noise, as a picture of `shift` times the side needs (SD3, arXiv:2403.03206)."""
    return shift * t / (1 + (shift - 1) * t)


def noise_range(
    path: Path, sigma_min: float | None = None, sigma_max: float | None = None
) -> tuple[float, float]:
    """The least and the most of sigma / alpha that sampling visits: the path's own where not given.

    At the data's end that is its first training step, or EDM's 0.002; at the noise's, where alpha may be 0,
    just before it.
    """
    if sigma_max is None:
        sigma_max = _noise_ratio(path, 1 - NEAR if ends_in_noise(path) else 1.0)
    if sigma_min is None:
        sigma_min = _noise_ratio(path, 1 / path.train_steps) if hasattr(path, 'train_steps') else 0.002
    return sigma_min, sigma_max


def check_range(knobs: Mapping[str, float]) -> None:
    """Refuse noise levels that do not fall, or reach 0."""
    low, high = knobs['sigma_min'], knobs['sigma_max']
    if not 0 < low < high:
        raise ValueError(
            f"the spacing's sigma_min is {low} and sigma_max {high}; they must be above 0, sigma_min the "
            'smaller.'
        )


def check_positive(knobs: Mapping[str, float], name: str) -> None:
    """Refuse a knob that is not above 0."""
    if not knobs[name] > 0:
        raise ValueError(f"the spacing's {name} is {knobs[name]}; it must be above 0.")


def _noise_ratio(path: Path, t: float) -> float:
    with jax.ensure_compile_time_eval():
        return float(path.sigma(jnp.float32(t)) / path.alpha(jnp.float32(t)))
