"""Denoising: predict what a perfect network would say of a noisy example, for any path and prediction.

With a noise prediction on a variance-preserving path this is DDPM's simple loss (arXiv:2006.11239), with
a velocity on the linear one flow matching (arXiv:2210.02747), with EDM's F at log-normal noise levels
EDM's (arXiv:2206.00364). Which times are drawn (times.py) and how much each counts (weighting.py) are one
option each. A learned variance adds the variational bound with its mean held fixed (arXiv:2102.09672).
`angle` adds the angle between what is predicted and the truth (LightningDiT, arXiv:2501.01423).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.config import NonNegative, Part, Positive, Share
from jaxgen.diffusion.path import Path, interpolate, per_example
from jaxgen.diffusion.prediction import Prediction
from jaxgen.diffusion.variational import variational_bound
from jaxgen.objectives import Loss, Objective, Phase
from jaxgen.objectives import times as drawn
from jaxgen.objectives import weighting as weights

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
    shift: Positive = 1.0,
    low: Share = 0.0,
    high: Share = 1.0,
    weighting: str = 'none',
    gamma: Positive | None = None,
    bias: float = 0.0,
    floor: Part = 0.0,
    angle: NonNegative = 0.0,
    drop: Part = 0.1,
) -> Objective:
    """Train 'model' (and the conditioner's own networks) to denoise.

    times: how t is drawn ('logit_normal' and 'log_normal' have `mean` and `spread`), then moved by `shift`
    and into [low, high]; weighting: how much a time's error counts, with `gamma`, `bias` and `floor`;
    angle: how much the angle, in channels, of what is predicted counts besides; drop: how often the
    condition is left out, for classifier-free guidance.
    """
    if prediction.learned_variance and times != 'discrete':
        raise ValueError("prediction.learned_variance is of training steps: set objective.times='discrete'.")
    draw_times = drawn.sampler(times, path, mean, spread, shift, low, high)
    weight = weights.build(weighting, path, prediction, gamma, bias, floor)
    weights.check_bounded(weighting, weight, drawn.ends(times, path, low, high), prediction.output)

    def pairs(known: Mapping, batch: Mapping, keys: Array) -> tuple[Array, Array]:
        latents = tokenizer.encode(known, batch, random.fold(keys, 'encode')).astype(jnp.float32)
        return latents, random.draw(jax.random.normal, random.fold(keys, 'noise'), latents.shape[1:])

    loss = denoising(networks, path, prediction, conditioner, pairs, draw_times, weight, drop, angle)
    return Objective((Phase('denoise', ('model', *conditioner.trains), loss),), reads=tokenizer.reads)


def denoising(
    networks: Mapping[str, Any],
    path: Path,
    prediction: Prediction,
    conditioner: Any,
    pairs: Callable[..., tuple[Array, Array]],
    draw_times: Callable[[Array], Array],
    weight: Callable[[Array], Array],
    drop: float,
    angle: float = 0.0,
) -> Loss:
    """The loss between latents and noise, `pairs(networks, batch, keys)`, wherever these come from."""

    def loss(params: Mapping, state: Any, frozen: Mapping, batch: Mapping, keys: Array, step: Array) -> tuple:
        known = {**frozen['networks'], **params}
        latents, noise = pairs(known, batch, keys)
        dropped = random.draw(jax.random.uniform, random.fold(keys, 'drop')) < drop
        cond = conditioner.embed(known, batch, dropped, random.fold(keys, 'embed'))
        t = draw_times(random.fold(keys, 'time'))
        x = interpolate(path, latents, noise, t)
        x_in, t_in = prediction.inputs(path, x, t)
        output, _, _ = networks['model'](known['model'], x_in, t_in, cond, train=True)
        estimate = prediction.estimate(path, x, t, output)
        target = prediction.target(path, latents, noise, t)
        misses = estimate.output - target
        errors = _mean((misses / per_example(prediction.size(path, t), misses)) ** 2)
        metrics = _by_time(errors, t)
        errors = weight(t) * errors
        if angle:
            turned = 1 - _mean(_cosine(estimate.output, target))
            metrics['angle'] = (turned.sum(), jnp.float32(turned.size))
            errors = errors + angle * turned
        if prediction.learned_variance:
            bound = variational_bound(estimate, latents)
            metrics['bound'] = (bound.sum(), jnp.float32(bound.size))
            errors = errors + bound
        return errors.sum(), jnp.float32(errors.size), state, metrics

    return loss


def _mean(values: Array) -> Array:
    return values.mean(axis=tuple(range(1, values.ndim)))


def _cosine(x: Array, y: Array) -> Array:
    """Of the angle between vectors of channels."""
    # Networks start with outputs of zero, where the cosine itself would have a gradient without bound.
    lengths = jnp.sum(x**2, -1) * jnp.sum(y**2, -1)
    return jnp.sum(x * y, -1) * jax.lax.rsqrt(lengths + 1e-6)


def _by_time(errors: Array, t: Array) -> dict[str, tuple[Array, Array]]:
    """The error, before it is weighted, and the error where t falls in each quarter of [0, 1]."""
    metrics = {'error': (errors.sum(), jnp.float32(errors.size))}
    for i in range(TIME_BINS):
        low, high = i / TIME_BINS, (i + 1) / TIME_BINS
        inside = ((t >= low) & ((t < high) | (i == TIME_BINS - 1))).astype(errors.dtype)
        metrics[f'error_t{low:.2f}_{high:.2f}'] = ((errors * inside).sum(), inside.sum())
    return metrics
