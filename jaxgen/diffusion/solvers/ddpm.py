"""DDPM's ancestral sampler (arXiv:2006.11239) on any spacing: a draw of x' from q(x' | x, predicted data).

The variance is the posterior's ('fixed_small'), that of the forward step ('fixed_large'), or between the two
as the network says ('learned', arXiv:2102.09672). The step onto the data is its mean.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.diffusion.solvers import Evaluate, Solver, State, onto_data
from jaxgen.diffusion.variational import log_variance, posterior

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
        mean, forward, share = posterior(estimate.path, estimate.data, state.x, t, t_next)
        if variance == 'learned':
            spread = jnp.exp(log_variance(estimate.variance.astype(mean.dtype), forward, share) / 2)
        else:
            spread = jnp.sqrt(forward * (share if variance == 'fixed_small' else 1))
        noise = random.draw(jax.random.normal, keys, mean.shape[1:]).astype(mean.dtype)
        x = jnp.where(onto_data(t_next), mean, mean + spread * noise)
        return state.replace(x=x, memory=memory)

    return Solver(init=lambda x: None, step=step, stochastic=True)
