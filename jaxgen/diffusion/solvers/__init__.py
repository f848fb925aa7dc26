"""Solvers of the probability flow, one a file, each with `build() -> Solver`.

A solver takes one step from t to t_next (scalars, t_next < t), asking `evaluate(x, t, memory,
evaluation) -> (estimate, memory)` as often as it needs; `history` is its own, walked by the loop.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
from jax import Array

Evaluate = Callable[..., tuple[Any, Any]]


@flax.struct.dataclass
class State:
    """What walks through the loop: the latents, the solver's history and the denoiser's memory."""

    x: Array
    history: Any
    memory: Any


@dataclasses.dataclass(frozen=True)
class Solver:
    """`init(x) -> history` and `step(state, evaluate, t, t_next, keys) -> state`; keys are one an image."""

    init: Callable[[Array], Any]
    step: Callable[[State, Evaluate, Array, Array, Array], State]
