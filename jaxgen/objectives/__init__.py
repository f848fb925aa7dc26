"""Objectives: what a training step minimises, as a tuple of phases.

`loss(params, state, frozen, batch, keys, step) -> (loss_sum, weight, state, metrics)`: `state` is learned
without gradients, `frozen` only read, `keys` one an example, metrics pairs (sum, weight) by name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jax import Array

Metrics = Mapping[str, tuple[Array, Array]]
Loss = Callable[..., tuple[Array, Array, Any, Metrics]]


def every_step(step: int) -> bool:
    """The `when` of a phase that is never left out."""
    return True


@dataclasses.dataclass(frozen=True)
class Phase:
    """One compiled update: which networks it trains, its loss, and on which steps it runs.

    `settle(params, state)`, where it has one, puts into the updated parameters what the state says of them.
    """

    name: str
    trains: tuple[str, ...]
    loss: Loss
    when: Callable[[int], bool] = every_step
    settle: Callable[[Any, Any], Any] | None = None

    def before(self, step: int) -> int:
        """How often it has run before a step: the count that its schedule goes by."""
        return step if self.when is every_step else sum(map(self.when, range(step)))


@dataclasses.dataclass(frozen=True)
class Objective:
    """The phases of a step, in order, and `init(key) -> state`.

    `held_out` is the loss that is read on held-out examples, where it is not the first phase's; `reads`
    names the arrays of a batch that the losses read besides the conditioner's, `uses` the frozen networks
    that they run even where what these make of the data is cached. `told` makes numbers of the means of
    held-out metrics where some of these are arrays.
    """

    phases: tuple[Phase, ...]
    init: Callable[[Array], Any] = lambda key: {}
    held_out: Loss | None = None
    reads: tuple[str, ...] = ('image',)
    uses: tuple[str, ...] = ()
    told: Callable[[Mapping[str, Any]], Mapping[str, float]] = dict
