"""Dormand and Prince's pair of orders 5 and 4 on dx/dt, with steps of its own choice (diffrax).

One step size for the whole batch, from the error of all of it, and one walk from end to end; but where what
is known is painted back on the way, from each of the spacing's times to the next.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.config import Count, NonNegative, Positive
from jaxgen.diffusion.solvers import Evaluate, Solver, State


def integrate(
    field: Callable[[Array, Any], Any],
    y: Any,
    t: Array,
    t_next: Array,
    rtol: float,
    atol: float,
    limit: int,
    first: Array | None = None,
) -> tuple[Any, Array]:
    """y at t_next of dy/dt = field(t, y), any pytree, and the steps it took; NaN beyond the limit of them.

    first: the size to try first, signed; chosen from the field where not given.
    """
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: field(t, y)),
        diffrax.Dopri5(),
        t,
        t_next,
        first,
        y,
        stepsize_controller=diffrax.PIDController(rtol, atol),
        max_steps=limit,
        throw=False,
    )
    arrived = solution.result == diffrax.RESULTS.successful
    ends = jax.tree.map(lambda end: jnp.where(arrived, end[0], jnp.nan), solution.ys)
    return ends, solution.stats['num_steps']


def build(rtol: Positive = 1e-3, atol: NonNegative = 1e-5, max_steps: Count = 1024) -> Solver:
    """The solver; rtol and atol bound each step's error, max_steps the steps of one walk."""

    def step(state: State, evaluate: Evaluate, t: Array, t_next: Array, keys: Array) -> State:
        if jax.tree.leaves(state.memory):
            raise ValueError(
                "the solver 'dopri5' chooses its own steps and tries some twice, which a denoiser's memory "
                "cannot follow; use 'heun' or 'midpoint', or leave the cache out."
            )

        def velocity(t: Array, x: Array) -> Array:
            return evaluate(x, jnp.asarray(t, x.dtype), None, 0)[0].velocity

        x, _ = integrate(velocity, state.x, t, t_next, rtol, atol, max_steps)
        return state.replace(x=x)

    return Solver(init=lambda x: None, step=step, adaptive=True)
