"""Solvers of the probability flow, one a file, each with `build() -> Solver`.

A solver takes one step from t to t_next (scalars, t_next < t), asking `evaluate(x, t, memory,
evaluation) -> (estimate, memory)` as often as it needs; `history` is its own, walked by the loop, which
also says which `step` of how many `steps` this is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
from jax import Array

from jaxgen.diffusion.prediction import TINY

Evaluate = Callable[..., tuple[Any, Any]]


@flax.struct.dataclass
class State:
    """What walks through the loop: the latents, the solver's history, the denoiser's memory, the place."""

    x: Array
    history: Any
    memory: Any
    step: Array | int = 0
    steps: Array | int = 1


@dataclasses.dataclass(frozen=True)
class Solver:
    """`init(x) -> history` and `step(state, evaluate, t, t_next, keys) -> state`; keys are one an image.

    adaptive: it chooses its own steps, so it is asked for one, all the way. needs_data: its equation has no
    meaning where alpha is 0. stochastic: it adds fresh noise. last_step: the size in t that it wants its last
    step to have, where it cares.
    """

    init: Callable[[Array], Any]
    step: Callable[[State, Evaluate, Array, Array, Array], State]
    adaptive: bool = False
    needs_data: bool = False
    stochastic: bool = False
    last_step: float = 0.0


def onto_data(t_next: Array) -> Array:
    """Whether a step ends on the data; times such as 1 - n / n may miss 0 by a rounding."""
    return t_next <= TINY
