"""UniC, the corrector of UniPC (arXiv:2302.04867): one order more for any solver, without evaluations.

The prediction at the new point, needed by the next step anyway, corrects the step that led there; the solver
then goes on from the corrected x with the same prediction. The correction is added to the x that is found, so
that what the loop has repainted stays.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.prediction import Estimate, Prediction
from jaxgen.diffusion.solvers import Evaluate, Solver, State, multistep


@flax.struct.dataclass
class Past:
    """The step that is to be corrected: where it began and led, the predictions, its solver's history."""

    x: Array
    x_next: Array
    t: Array
    history: multistep.History
    inner: Any


def corrected(
    solver: Solver,
    order: int,
    pair: multistep.Pair = multistep.second_pair,
    predict: str = 'data',
    lower_order_final: bool = True,
) -> Solver:
    """A deterministic solver of this order, whose steps begin by evaluating at their start, with UniC."""
    if solver.stochastic or solver.adaptive:
        raise ValueError(
            'the corrector takes back fresh noise, and cannot follow steps that a solver chooses itself; '
            'use a deterministic solver of fixed steps.'
        )

    def init(x: Array) -> Past:
        return Past(x, x, jnp.ones((), x.dtype), multistep.empty(x, order), solver.init(x))

    def step(state: State, evaluate: Evaluate, t: Array, t_next: Array, keys: Array) -> State:
        past = state.history
        estimate, memory = evaluate(state.x, t, state.memory, 0)
        value, path = multistep.predicted(estimate, predict), estimate.path

        def correct() -> Array:
            stretch = multistep.stride(path, past.t, t, predict)
            # The new prediction is the first node; the history's newest is m_0, the others follow.
            ratios = jnp.append(jnp.ones_like(t), stretch.ratios(past.history)[1:])
            values = jnp.concatenate([value[None], past.history.values[1:]])
            count = past.history.count
            if lower_order_final:
                count = jnp.minimum(count, state.steps - state.step + 1)
            weights = multistep.weights(ratios, stretch.z, pair, count)
            right = stretch.walk(past.x, past.history.values[0], values, ratios, weights)
            return state.x + (right - past.x_next)

        x = jax.lax.cond(past.history.count > 0, correct, lambda: state.x)
        known = Estimate(x, estimate.t, value, estimate.variance, path, Prediction(predict, 'unit'))

        def replay(x: Array, t: Array, memory: Any, evaluation: int = 0) -> tuple[Estimate, Any]:
            return evaluate(x, t, memory, evaluation) if evaluation else (known, memory)

        inner = state.replace(x=x, memory=memory, history=past.inner)
        moved = solver.step(inner, replay, t, t_next, keys)
        position = multistep.stride(path, t, t_next, predict).position
        history = multistep.remember(past.history, value, position)
        return moved.replace(history=Past(x, moved.x, t, history, moved.history))

    needs_data = solver.needs_data or predict == 'noise'
    return dataclasses.replace(solver, init=init, step=step, needs_data=needs_data)
