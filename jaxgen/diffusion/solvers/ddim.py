"""DDIM (arXiv:2010.02502): keep the predicted data and noise, move to the next alpha and sigma.

`eta` puts fresh noise back: 0 is the deterministic sampler, 1 on a variance-preserving path is DDPM's
posterior. Written for any path: x_next = alpha' data + sqrt(sigma'^2 - s^2) noise + s z with
s = eta sigma'/sigma sqrt(sigma^2 - (sigma' alpha / alpha')^2).
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.diffusion.solvers import Evaluate, Solver, State


def build(eta: float = 0.0) -> Solver:
    """The solver with its share of fresh noise."""
    if eta < 0:
        raise ValueError(f'sampler.solver.eta is {eta}; it must be 0 (no fresh noise) or above.')

    def step(state: State, evaluate: Evaluate, t: Array, t_next: Array, keys: Array) -> State:
        estimate, memory = evaluate(state.x, t, state.memory, 0)
        path, alpha, sigma = estimate.path, estimate.path.alpha(t), estimate.path.sigma(t)
        alpha_next, sigma_next = path.alpha(t_next), path.sigma(t_next)
        x = alpha_next * estimate.data + sigma_next * estimate.noise
        if eta:
            kept = sigma**2 - (sigma_next * alpha / alpha_next) ** 2
            fresh = float(eta) * sigma_next / sigma * jnp.sqrt(jnp.maximum(kept, 0))
            direction = jnp.sqrt(jnp.maximum(sigma_next**2 - fresh**2, 0))
            noise = random.draw(jax.random.normal, keys, x.shape[1:]).astype(x.dtype)
            x = alpha_next * estimate.data + direction * estimate.noise + fresh * noise
        return state.replace(x=x, memory=memory)

    return Solver(init=lambda x: None, step=step, stochastic=eta > 0)
