"""The one sampling loop: any denoiser, any solver, any spacing, in one jitted call.

A traced step count makes a while loop; a Python int a scan, through which gradients flow.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.diffusion.denoiser import At, Condition, Denoiser
from jaxgen.diffusion.path import interpolate
from jaxgen.diffusion.solvers import Solver, State

Times = Callable[[Array, Array], Array]


def solve(
    denoiser: Denoiser,
    solver: Solver,
    spacing: Times,
    steps: Array | int,
    x: Array,
    cond: Condition,
    keys: Array,
    keep: Callable[[Array, Array], Array] = lambda x, t: x,
    first: Array | int = 0,
) -> Array:
    """Walk x from spacing(first) to spacing(steps); `keep(x, t)` repaints what is known after each step."""

    def body(i: Array, state: State) -> State:
        t, t_next = (jnp.asarray(spacing(j, steps), x.dtype) for j in (i, i + 1))

        def evaluate(x: Array, t: Array, memory: object, evaluation: int = 0) -> tuple:
            return denoiser.denoise(x, jnp.full(x.shape[:1], t), cond, memory, At(i, steps, evaluation))

        step_keys = random.split_each(random.fold(keys, 'solver'), i)
        state = solver.step(state, evaluate, t, t_next, step_keys)
        return state.replace(x=keep(state.x, t_next), step=jnp.int32(i + 1))

    start = State(x, solver.init(x), denoiser.init(x, cond), jnp.int32(first), jnp.int32(steps))
    return jax.lax.fori_loop(first, steps, body, start).x


def repaint(init: Array, mask: Array | None, noise: Array, path: object) -> Callable[[Array, Array], Array]:
    """Keep `init`, at each time's noise level, where mask is 0; paint where it is 1."""
    if mask is None:
        return lambda x, t: x

    def keep(x: Array, t: Array) -> Array:
        known = interpolate(path, init, noise, jnp.full(x.shape[:1], t))
        return jnp.where(mask > 0.5, x, known)

    return keep
