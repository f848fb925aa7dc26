"""Denoising: predict what a perfect network would say of a noisy example, for any path and prediction.

With a noise prediction on a variance-preserving path this is DDPM's simple loss (arXiv:2006.11239), with
a velocity on the linear one flow matching (arXiv:2210.02747); times uniform, uniform over the training
steps, or logit-normal (SD3, arXiv:2403.03206). A learned variance adds the variational bound with its
mean held fixed (arXiv:2102.09672).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.diffusion.path import Path, interpolate
from jaxgen.diffusion.prediction import Prediction
from jaxgen.diffusion.variational import variational_bound
from jaxgen.objectives import Objective, Phase

TIMES = ('uniform', 'discrete', 'logit_normal')
TIME_BINS = 4


def build(
    networks: Mapping[str, Any],
    path: Path,
    prediction: Prediction,
    conditioner: Any,
    tokenizer: Any,
    times: str = 'uniform',
    mean: float = 0.0,
    spread: float = 1.0,
    drop: float = 0.1,
) -> Objective:
    """Train 'model' (and the conditioner's own networks) to denoise.

    times: how t is drawn ('logit_normal' has `mean` and `spread`); drop: how often the condition is
    left out, for classifier-free guidance.
    """
    if times not in TIMES:
        raise ValueError(f"objective.times is '{times}'; it can be one of {', '.join(TIMES)}.")
    if times == 'discrete' and not hasattr(path, 'train_steps'):
        raise ValueError("objective.times 'discrete' needs a path with training steps: set path.name='vp'.")
    if prediction.learned_variance and times != 'discrete':
        raise ValueError("prediction.learned_variance is of training steps: set objective.times='discrete'.")
    if not 0 <= drop < 1:
        raise ValueError(f'objective.drop is {drop}; it is a share of the examples, in [0, 1).')
    draw_times = _time_sampler(times, mean, spread, getattr(path, 'train_steps', None))

    def loss(params: Mapping, state: Any, frozen: Mapping, batch: Mapping, keys: Array, step: Array) -> tuple:
        known = {**frozen['networks'], **params}
        latents = tokenizer.encode(known, batch, random.fold(keys, 'encode')).astype(jnp.float32)
        dropped = random.draw(jax.random.uniform, random.fold(keys, 'drop')) < drop
        cond = conditioner.embed(known, batch, dropped, random.fold(keys, 'embed'))
        t = draw_times(random.fold(keys, 'time'))
        noise = random.draw(jax.random.normal, random.fold(keys, 'noise'), latents.shape[1:])
        x = interpolate(path, latents, noise, t)
        x_in, t_in = prediction.inputs(path, x, t)
        output, _, _ = networks['model'](known['model'], x_in, t_in, cond, train=True)
        estimate = prediction.estimate(path, x, t, output)
        errors = _mean((estimate.output - prediction.target(path, latents, noise, t)) ** 2)
        metrics = _by_time(errors, t)
        if prediction.learned_variance:
            bound = variational_bound(estimate, latents)
            metrics['bound'] = (bound.sum(), jnp.float32(bound.size))
            errors = errors + bound
        return errors.sum(), jnp.float32(errors.size), state, metrics

    trains = ('model', *conditioner.trains)
    return Objective((Phase('denoise', trains, loss),))


def _time_sampler(times: str, mean: float, spread: float, steps: int | None) -> Callable[[Array], Array]:
    def sampler(keys: Array) -> Array:
        if times == 'logit_normal':
            return jax.nn.sigmoid(mean + spread * random.draw(jax.random.normal, keys))
        uniform = random.draw(jax.random.uniform, keys)
        return (jnp.floor(uniform * steps) + 1) / steps if times == 'discrete' else uniform

    return sampler


def _mean(values: Array) -> Array:
    return values.mean(axis=tuple(range(1, values.ndim)))


def _by_time(errors: Array, t: Array) -> dict[str, tuple[Array, Array]]:
    """The error, and the error where t falls in each quarter of [0, 1]."""
    metrics = {'error': (errors.sum(), jnp.float32(errors.size))}
    for i in range(TIME_BINS):
        low, high = i / TIME_BINS, (i + 1) / TIME_BINS
        inside = ((t >= low) & ((t < high) | (i == TIME_BINS - 1))).astype(errors.dtype)
        metrics[f'error_t{low:.2f}_{high:.2f}'] = ((errors * inside).sum(), inside.sum())
    return metrics
