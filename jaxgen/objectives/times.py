"""The times that training draws, t in [0, 1] with 1 = noise.

Uniform; uniform over DDPM's training steps; normal in logit(t), SD3's mode and cosmap (arXiv:2403.03206);
or, EDM's (arXiv:2206.00364), normal in log(sigma / alpha), which is the same on every path. `shift` then
moves them towards noise, and an interval leaves out ends that a loss cannot bear (SiT, arXiv:2401.08740).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.diffusion.path import Path

TIMES = ('uniform', 'discrete', 'logit_normal', 'log_normal', 'mode', 'cosmap')
REACH_ENDS = ('uniform', 'discrete', 'mode', 'cosmap')
MODE_LIMIT = 2 / (math.pi - 2)  # beyond it, SD3's mode is no longer one to one


def sampler(
    times: str, path: Path, mean: float, spread: float, shift: float, low: float, high: float
) -> Callable[[Array], Array]:
    """`draw(keys) -> t`, one time for each key; what makes no sense is refused."""
    _check(times, path, spread, shift, low, high)

    def draw(keys: Array) -> Array:
        if times in ('logit_normal', 'log_normal'):
            value = mean + spread * random.draw(jax.random.normal, keys)
            t = jax.nn.sigmoid(value) if times == 'logit_normal' else path.time(-2 * value)
        else:
            t = random.draw(jax.random.uniform, keys)
        if times == 'discrete':
            return (jnp.floor(t * path.train_steps) + 1) / path.train_steps
        if times == 'mode':
            t = 1 - t - spread * (jnp.cos(jnp.pi / 2 * t) ** 2 - 1 + t)
        if times == 'cosmap':
            t = 1 - 1 / (jnp.tan(jnp.pi / 2 * t) + 1)
        t = shift * t / (1 + (shift - 1) * t)
        return low + (high - low) * t

    return draw


def ends(times: str, path: Path, low: float, high: float) -> tuple[float, ...]:
    """The extreme times that are drawn as often as others; none where they are ever rarer."""
    if times not in REACH_ENDS:
        return ()
    return (1 / path.train_steps, 1.0) if times == 'discrete' else (low, high)


def _check(times: str, path: Path, spread: float, shift: float, low: float, high: float) -> None:
    if times not in TIMES:
        raise ValueError(f"objective.times is '{times}'; it can be one of {', '.join(TIMES)}.")
    if times == 'discrete' and not hasattr(path, 'train_steps'):
        raise ValueError("objective.times 'discrete' needs a path with training steps: set path.name='vp'.")
    if times == 'discrete' and (shift, low, high) != (1, 0, 1):
        raise ValueError(
            "objective.times 'discrete' takes no shift, low or high; set objective.times='uniform'."
        )
    if times == 'mode' and not -1 <= spread <= MODE_LIMIT:
        raise ValueError(f"objective.spread is {spread}; times 'mode' takes one in [-1, {MODE_LIMIT:.3f}].")
    if times != 'mode' and spread < 0:
        raise ValueError(f'objective.spread is {spread}; it must not be negative.')
    if low > high:
        raise ValueError(f'objective.low is {low} and high {high}; times lie between them, low first.')
