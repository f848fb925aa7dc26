"""The denoiser: what a solver asks, and what guidance, caches and control wrap.

A denoiser is a pair of functions over a memory that walks through the sampling loop. It does not close
over its condition, so that whoever wraps it may batch, share or replace conditions.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from jaxgen.diffusion.path import Path
from jaxgen.diffusion.prediction import Estimate, Prediction

Memory = Any
Condition = Any


class At(NamedTuple):
    """Where in the sampling loop an evaluation stands."""

    step: Array | int
    steps: Array | int
    evaluation: int = 0


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """`init(x, cond) -> memory` and `denoise(x, t, cond, memory, at) -> (estimate, memory)`; t is [B]."""

    init: Callable[[Array, Condition], Memory]
    denoise: Callable[[Array, Array, Condition, Memory, At], tuple[Estimate, Memory]]


def network_denoiser(network: Callable, path: Path, prediction: Prediction) -> Denoiser:
    """The plain denoiser of `network(x, t, cond) -> (out, features, memory)`, without memory."""

    def denoise(x: Array, t: Array, cond: Condition, memory: Memory, at: At) -> tuple[Estimate, Memory]:
        x_in, t_in = prediction.inputs(path, x, t)
        output, _, _ = network(x_in, t_in, cond)
        return prediction.estimate(path, x, t, output), memory

    return Denoiser(init=lambda x, cond: None, denoise=denoise)
