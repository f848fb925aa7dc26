"""Reflow: train on the pairs that a first flow drew, noise with the latents it became (arXiv:2209.03003).

A flow's own pairs are a coupling whose straight lines cross less than those of noise and data drawn apart, so
that the flow trained on them bends less and needs fewer steps. Its error is the paper's straightness.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxgen.config import Part, Positive, Share
from jaxgen.diffusion.path import Linear, Path
from jaxgen.diffusion.prediction import Prediction
from jaxgen.objectives import Objective, Phase
from jaxgen.objectives import times as drawn
from jaxgen.objectives import weighting as weights
from jaxgen.objectives.diffusion import denoising


def build(
    networks: Mapping[str, Any],
    path: Path,
    prediction: Prediction,
    conditioner: Any,
    times: str = 'uniform',
    mean: float = 0.0,
    spread: float = 1.0,
    shift: Positive = 1.0,
    low: Share = 0.0,
    high: Share = 1.0,
    weighting: str = 'none',
    floor: Part = 0.0,
    drop: Part = 0.0,
) -> Objective:
    """Train 'model' between the batch's 'latents' and its 'noise'; the options are those of 'diffusion'.

    The times low=1, high=1 are the paper's distillation into one step. Pairs drawn with guidance have it in
    them: sample without, and leave drop at 0.
    """
    if not isinstance(path, Linear):
        raise ValueError("reflow straightens the lines between noise and data: set path.name='linear'.")
    if prediction.learned_variance:
        raise ValueError('a flow has no variance to learn: set prediction.learned_variance=False.')
    draw_times = drawn.sampler(times, path, mean, spread, shift, low, high)
    weight = weights.build(weighting, path, prediction, None, 0.0, floor)
    weights.check_bounded(weighting, weight, drawn.ends(times, path, low, high), prediction.output)

    def pairs(known: Mapping, batch: Mapping, keys: Array) -> tuple[Array, Array]:
        return batch['latents'].astype(jnp.float32), batch['noise'].astype(jnp.float32)

    loss = denoising(networks, path, prediction, conditioner, pairs, draw_times, weight, drop)
    phase = Phase('denoise', ('model', *conditioner.trains), loss)
    return Objective((phase,), reads=('noise', 'latents'))
