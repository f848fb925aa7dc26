"""Heun's method on dx/dt (EDM's deterministic sampler, arXiv:2206.00364): order 2, two evaluations a step.

The last step, to the data at t = 0, where a noise prediction's slope has no limit, is Euler's.
"""

import jax
from jax import Array

from jaxgen.diffusion.solvers import Evaluate, Solver, State, onto_data


def build() -> Solver:
    """The solver; it has no settings."""

    def step(state: State, evaluate: Evaluate, t: Array, t_next: Array, keys: Array) -> State:
        estimate, memory = evaluate(state.x, t, state.memory, 0)
        slope = estimate.velocity
        ahead = state.x + (t_next - t) * slope

        def corrected() -> State:
            estimate_ahead, walked = evaluate(ahead, t_next, memory, 1)
            mean = (slope + estimate_ahead.velocity) / 2
            return state.replace(x=state.x + (t_next - t) * mean, memory=walked)

        return jax.lax.cond(onto_data(t_next), lambda: state.replace(x=ahead, memory=memory), corrected)

    return Solver(init=lambda x: None, step=step)
