"""DDPM's ancestral sampler (arXiv:2006.11239) on any spacing: a draw of x' from q(x' | x, predicted data).

The variance is the posterior's ('fixed_small'), that of the forward step ('fixed_large'), or between the two
as the network says ('learned', arXiv:2102.09672). The step onto the data is its mean. With
a = alpha / alpha' and b^2 = sigma^2 - a^2 sigma'^2, the forward step's, all holds for any path.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.diffusion.prediction import TINY
from jaxgen.diffusion.solvers import Evaluate, Solver, State

VARIANCES = ('fixed_small', 'fixed_large', 'learned')


def build(variance: str = 'fixed_small', learned_variance: bool | None = None) -> Solver:
    """The solver; `learned_variance` is the recipe's: whether the network predicts one."""
    if variance not in VARIANCES:
        raise ValueError(f"sampler.solver.variance is '{variance}'; it can be one of {', '.join(VARIANCES)}.")
    if variance == 'learned' and learned_variance is False:
        raise ValueError(
            "sampler.solver.variance='learned' needs a network that predicts it: set "
            "prediction.learned_variance=True, or variance='fixed_small'."
        )

    def step(state: State, evaluate: Evaluate, t: Array, t_next: Array, keys: Array) -> State:
        estimate, memory = evaluate(state.x, t, state.memory, 0)
        path = estimate.path
        alpha, sigma, alpha_next, sigma_next = (f(s) for s in (t, t_next) for f in (path.alpha, path.sigma))
        a = alpha / alpha_next
        forward = jnp.maximum(sigma**2 - (a * sigma_next) ** 2, 0)
        share = (sigma_next / sigma) ** 2
        mean = alpha_next * forward / sigma**2 * estimate.data + a * share * state.x
        if variance == 'learned':
            weight = (estimate.variance.astype(mean.dtype) + 1) / 2
            spread = jnp.sqrt(forward) * share ** ((1 - weight) / 2)
        else:
            spread = jnp.sqrt(forward * (share if variance == 'fixed_small' else 1))
        noise = random.draw(jax.random.normal, keys, mean.shape[1:]).astype(mean.dtype)
        x = jnp.where(t_next > TINY, mean + spread * noise, mean)
        return state.replace(x=x, memory=memory)

    return Solver(init=lambda x: None, step=step)
