"""SiT's reverse-time SDE (arXiv:2401.08740): dx = (velocity - w score) dt + sqrt(2 w) dW, t falling.

Any diffusion coefficient w(t) >= 0 leaves the marginals as they are, so it is chosen after training. Euler
and Maruyama's step, or Heun's after the noise; the last step, from `last_step_size` to the data, has none.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.config import Inside, NonNegative
from jaxgen.diffusion.path import Path, d_alpha, d_sigma
from jaxgen.diffusion.prediction import NEAR, Estimate
from jaxgen.diffusion.solvers import Evaluate, Solver, State, onto_data

DIFFUSIONS = ('constant', 'sbdm', 'sigma', 'linear', 'decreasing', 'increasing_decreasing')
METHODS = ('euler', 'heun')
LAST_STEPS = ('mean', 'tweedie', 'euler', 'none')


def coefficient(path: Path, t: Array, form: str, norm: float = 1.0) -> Array:
    """w(t); 'sbdm' is that of the path's own forward process."""
    if form == 'constant':
        return jnp.full_like(t, norm)
    if form == 'sbdm':
        alpha, sigma = path.alpha(t), path.sigma(t)
        return norm * sigma * (d_sigma(path, t) - d_alpha(path, t) / alpha * sigma)
    if form == 'sigma':
        return norm * path.sigma(t)
    if form == 'linear':
        return norm * t
    if form == 'decreasing':
        return (norm * jnp.cos(jnp.pi * (1 - t)) + 1) ** 2 / 4
    return norm * jnp.sin(jnp.pi * t) ** 2


def build(
    path: Path,
    method: str = 'euler',
    diffusion: str = 'sbdm',
    norm: NonNegative = 1.0,
    last_step: str = 'mean',
    last_step_size: Inside = 0.04,
) -> Solver:
    """The solver with w(t) = norm times a form.

    last_step: the drift alone ('mean'), the denoised x ('tweedie'), the flow ('euler') or no step from just
    above the data ('none').
    """
    for name, value, choices in (
        ('method', method, METHODS),
        ('diffusion', diffusion, DIFFUSIONS),
        ('last_step', last_step, LAST_STEPS),
    ):
        if value not in choices:
            raise ValueError(f"sampler.solver.{name} is '{value}'; it can be one of {', '.join(choices)}.")

    def w(t: Array) -> Array:
        return coefficient(path, t, diffusion, norm)

    def drift(estimate: Estimate, t: Array) -> Array:
        return w(t) * estimate.score - estimate.velocity

    def inner(state: State, evaluate: Evaluate, t: Array, t_next: Array, keys: Array) -> State:
        size, x, memory = t - t_next, state.x, state.memory
        noise = random.draw(jax.random.normal, keys, x.shape[1:]).astype(x.dtype)
        kick = jnp.sqrt(2 * w(t) * size) * noise
        if method == 'euler':
            estimate, memory = evaluate(x, t, memory, 0)
            return state.replace(x=x + size * drift(estimate, t) + kick, memory=memory)
        estimate, memory = evaluate(x + kick, t, memory, 0)
        slope = drift(estimate, t)
        ahead, memory = evaluate(x + kick + size * slope, t_next, memory, 1)
        mean = (slope + drift(ahead, t_next)) / 2
        return state.replace(x=x + kick + size * mean, memory=memory)

    def last(state: State, evaluate: Evaluate, t: Array, t_next: Array) -> State:
        if last_step == 'none':
            return state
        estimate, memory = evaluate(state.x, t, state.memory, 0)
        if last_step == 'tweedie':
            return state.replace(x=estimate.data, memory=memory)
        slope = drift(estimate, t) if last_step == 'mean' else -estimate.velocity
        return state.replace(x=state.x + (t - t_next) * slope, memory=memory)

    def step(state: State, evaluate: Evaluate, t: Array, t_next: Array, keys: Array) -> State:
        return jax.lax.cond(
            onto_data(t_next),
            lambda: last(state, evaluate, t, t_next),
            lambda: inner(state, evaluate, t, t_next, keys),
        )

    size = NEAR if last_step == 'none' else last_step_size
    return Solver(lambda x: None, step, needs_data=diffusion == 'sbdm', stochastic=norm > 0, last_step=size)
