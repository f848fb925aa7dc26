"""EDM's stochastic sampler (algorithm 2 of arXiv:2206.00364): raise the noise a little, then Heun's step.

The step is taken on x / alpha over sigma / alpha, whose slope is the noise: on EDM's own path the paper's
algorithm, on others the same for their noise relative to the data. Order 2 without churn.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.config import NonNegative
from jaxgen.diffusion.path import Path
from jaxgen.diffusion.solvers import Evaluate, Solver, State, onto_data

MOST_CHURN = 2**0.5 - 1


def build(
    path: Path,
    churn: NonNegative = 0.0,
    churn_min: NonNegative = 0.0,
    churn_max: NonNegative = float('inf'),
    noise: NonNegative = 1.0,
) -> Solver:
    """The solver; the paper's S_churn, shared out to the steps, its S_min, S_max and S_noise."""
    if churn_min > churn_max:
        raise ValueError(
            f'sampler.solver.churn_min is {churn_min}, above churn_max, {churn_max}; it must be the smaller.'
        )

    def ratio(t: Array) -> Array:
        return path.sigma(t) / path.alpha(t)

    def raised(state: State, t: Array, keys: Array) -> tuple[Array, Array, Array]:
        """x / alpha, sigma / alpha and t after the churn."""
        x, level = state.x / path.alpha(t), ratio(t)
        if not churn:
            return x, level, t
        share = jnp.minimum(churn / state.steps, MOST_CHURN)
        share = jnp.where((churn_min <= level) & (level <= churn_max), share, 0)
        if hasattr(path, 'log_alpha'):  # a variance-preserving path has no more noise than at t = 1
            share = jnp.minimum(share, jnp.maximum(ratio(jnp.ones_like(t)) / level - 1, 0))
        higher = level * (1 + share)
        fresh = random.draw(jax.random.normal, keys, x.shape[1:]).astype(x.dtype)
        x = x + level * jnp.sqrt(share * (2 + share)) * noise * fresh  # sqrt(higher^2 - level^2)
        return x, higher, path.time(-2 * jnp.log(higher)).astype(x.dtype)

    def step(state: State, evaluate: Evaluate, t: Array, t_next: Array, keys: Array) -> State:
        x, level, t = raised(state, t, keys)
        size = ratio(t_next) - level
        estimate, memory = evaluate(path.alpha(t) * x, t, state.memory, 0)
        slope, ahead = estimate.noise, path.alpha(t_next) * (x + size * estimate.noise)

        def corrected() -> State:
            estimate_ahead, walked = evaluate(ahead, t_next, memory, 1)
            mean = (slope + estimate_ahead.noise) / 2
            return state.replace(x=path.alpha(t_next) * (x + size * mean), memory=walked)

        return jax.lax.cond(onto_data(t_next), lambda: state.replace(x=ahead, memory=memory), corrected)

    return Solver(init=lambda x: None, step=step, needs_data=True, stochastic=churn > 0)
