"""The midpoint method on dx/dt: order 2, two evaluations a step, none of them at its end."""

from jax import Array

from jaxgen.diffusion.solvers import Evaluate, Solver, State


def build() -> Solver:
    """The solver; it has no settings."""

    def step(state: State, evaluate: Evaluate, t: Array, t_next: Array, keys: Array) -> State:
        size = t_next - t
        estimate, memory = evaluate(state.x, t, state.memory, 0)
        middle, memory = evaluate(state.x + size / 2 * estimate.velocity, t + size / 2, memory, 1)
        return state.replace(x=state.x + size * middle.velocity, memory=memory)

    return Solver(init=lambda x: None, step=step)
