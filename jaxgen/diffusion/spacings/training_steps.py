"""A subset of a variance-preserving path's training steps (table 2 of arXiv:2305.08891), then the data.

'trailing' counts back from the last training step, 'leading' counts up from the first, 'linspace' takes in
both ends. Which step a half rounds to is decided in float64, in the order of the public schedulers' sums,
so the steps come from a table made when the spacing is built.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.config import Count, Whole
from jaxgen.diffusion.path import Path
from jaxgen.diffusion.spacings import Spacing

PLACEMENTS = ('trailing', 'leading', 'linspace')


@functools.cache
def training_steps(placement: str, steps: int, train_steps: int, extra: bool = False) -> np.ndarray:
    """The training steps that `steps` steps stop at, noisiest first."""
    if placement == 'trailing':
        counted = np.arange(train_steps, 0, -train_steps / steps)[:steps].round() - 1
    elif placement == 'leading':
        counted = (np.arange(steps + extra) * (train_steps // (steps + extra)))[::-1][:steps]
    else:
        counted = np.linspace(0, train_steps - 1, steps + extra).round()[::-1][:steps]
    return counted.astype(np.int32)


def build(
    path: Path,
    placement: str = 'trailing',
    offset: Whole = 0,
    extra: bool = False,
    to_first: bool = False,
    max_steps: Count = 250,
) -> Spacing:
    """The spacing; extra: place one step more and leave out the last, as DPM-Solver's code does.

    offset: added to every step, as Stable Diffusion's 'leading' adds 1. to_first: end at the first training
    step instead of the data.
    """
    if not hasattr(path, 'train_steps'):
        raise ValueError(
            "sampler.spacing 'training_steps' needs a path that has them: set path.name='vp', "
            "or sampler.spacing.name='uniform'."
        )
    if placement not in PLACEMENTS:
        raise ValueError(
            f"sampler.spacing.placement is '{placement}'; it can be one of {', '.join(PLACEMENTS)}."
        )
    count = path.train_steps
    if max_steps > count - extra:
        raise ValueError(
            f'sampler.spacing.max_steps is {max_steps}; of this path it can be up to {count - extra}.'
        )
    table = np.full((max_steps + 1, max_steps + 1), 0 if to_first else -1, np.int32)
    for steps in range(1, max_steps + 1):
        chosen = training_steps(placement, steps, count, extra) + offset
        table[steps, :steps] = np.minimum(chosen, count - 1)

    def time(i: Array, steps: Array, knobs: object) -> Array:
        return (jnp.asarray(table)[steps, i] + 1) / jnp.asarray(count, jnp.result_type(float))

    return Spacing(time, max_steps=max_steps)
