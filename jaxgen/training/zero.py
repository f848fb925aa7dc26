"""Updates split over all devices that hold a copy of a parameter (ZeRO, Rajbhandari et al., 1910.02054).

Devices along data have the same parameters, and would all renew them alike. Here each renews a part:
gradients arrive summed in parts instead of whole, moments and averages are kept in parts, and the new
parameters are gathered. The network carries what it does otherwise; memory and work are divided.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from jaxgen.training import sharding
from jaxgen.training.state import TrainState


def placed(state: TrainState, rules: Sequence[sharding.Rule], mesh: Mesh) -> TrainState:
    """A state's shapes with their places: parameters by the rules, what is beside them spread further."""
    own = sharding.placed(state, rules, mesh)
    beside = {name: getattr(state, name) for name in ('optimizer', 'ema', 'profiles')}
    return own.replace(**sharding.placed(beside, rules, mesh, spread=True))


def spread(tree: Any, rules: Sequence[sharding.Rule], mesh: Mesh) -> Any:
    """Inside of a jitted call, what has the shape of parameters laid out as their moments are."""
    return jax.lax.with_sharding_constraint(tree, sharding.place(tree, rules, mesh, spread=True))


def spread_updates(
    optimizer: optax.GradientTransformation, rules: Sequence[sharding.Rule], mesh: Mesh
) -> optax.GradientTransformation:
    """The optimizer, working on parts of the gradients."""

    def update(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return optimizer.update(spread(gradients, rules, mesh), state, params)

    return optimizer._replace(update=update)


def spread_step(step: Callable, rules: Sequence[sharding.Rule], mesh: Mesh) -> Callable:
    """The step, its new parameters made in parts; where they are to lie whole they are gathered last."""

    @functools.wraps(step)
    def spreading(*arguments: Any) -> tuple[TrainState, dict]:
        state, metrics = step(*arguments)
        return state.replace(params=spread(state.params, rules, mesh)), metrics

    return spreading
