"""Euler's method on dx/dt: order 1, one evaluation a step."""

from jax import Array

from jaxgen.diffusion.solvers import Evaluate, Solver, State


def build() -> Solver:
    """The solver; it has no settings."""

    def step(state: State, evaluate: Evaluate, t: Array, t_next: Array, keys: Array) -> State:
        estimate, memory = evaluate(state.x, t, state.memory, 0)
        return state.replace(x=state.x + (t_next - t) * estimate.velocity, memory=memory)

    return Solver(init=lambda x: None, step=step)
