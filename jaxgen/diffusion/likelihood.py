"""Likelihood along the probability flow (arXiv:1806.07366, arXiv:2011.13456).

The flow from data to noise is a change of variables, d log p / dt = -div(velocity), down to the noise's own
density. The divergence is exact, or Hutchinson's estimate from random signs, which is right on average.
"""

import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.diffusion.denoiser import At, Condition, Denoiser
from jaxgen.diffusion.path import Path
from jaxgen.diffusion.solvers.dopri5 import integrate

TRACES = ('hutchinson', 'exact')


@flax.struct.dataclass
class Likelihood:
    """log_density [B], in nats, of x; the noise that x flows to; the steps taken."""

    log_density: Array
    noise: Array
    steps: Array

    def bits_per_dimension(self, levels: int = 256) -> Array:
        """Bits a dimension of pixels of so many levels, spread over [-1, 1] with uniform noise added."""
        dimensions = self.noise[0].size
        return -self.log_density / (dimensions * math.log(2)) + math.log2((levels - 1) / 2)


def likelihood(
    denoiser: Denoiser,
    path: Path,
    x: Array,
    cond: Condition,
    keys: Array,
    ends: tuple[float, float] = (0.0, 1.0),
    trace: str = 'hutchinson',
    rtol: float = 1e-5,
    atol: float = 1e-5,
    limit: int = 1024,
) -> Likelihood:
    """The likelihood of x; jit it.

    ends: the times between which the network tells dx/dt, `prediction.span(path, prediction)`: x is taken as
    it stands at the first, and as Gaussian noise at the second. keys: one an example, for Hutchinson's signs.
    limit: the most steps; what needs more is NaN.
    """
    if trace not in TRACES:
        raise ValueError(f"trace is '{trace}'; it can be one of {', '.join(TRACES)}.")
    memory = denoiser.init(x, cond)
    signs = random.draw(jax.random.rademacher, random.fold(keys, 'likelihood'), x.shape[1:]).astype(x.dtype)
    divergence = _along(signs) if trace == 'hutchinson' else _exact

    def field(t: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        def velocity(x: Array) -> Array:
            estimate, _ = denoiser.denoise(x, jnp.full(x.shape[:1], t, x.dtype), cond, memory, At(0, 1))
            return estimate.velocity

        value, pull = jax.vjp(velocity, state[0])
        return value, divergence(pull, value)

    start = x, jnp.zeros(len(x), x.dtype)
    times = (jnp.asarray(t, x.dtype) for t in ends)
    (noise, gained), steps = integrate(field, start, *times, rtol, atol, limit)
    spread = path.sigma(jnp.asarray(ends[1], x.dtype))
    prior = jax.scipy.stats.norm.logpdf(noise, scale=spread).sum(tuple(range(1, x.ndim)))
    return Likelihood(prior + gained, noise, steps)


def _along(signs: Array) -> Callable[[Callable, Array], Array]:
    """Hutchinson's estimate signs . J signs."""

    def divergence(pull: Callable, like: Array) -> Array:
        return (pull(signs)[0] * signs).sum(tuple(range(1, like.ndim)))

    return divergence


def _exact(pull: Callable, like: Array) -> Array:
    """The trace of the Jacobian, one dimension after another."""
    shape = like.shape[1:]

    def add(i: Array, total: Array) -> Array:
        basis = jnp.zeros(math.prod(shape), like.dtype).at[i].set(1).reshape(shape)
        return total + (pull(jnp.broadcast_to(basis, like.shape))[0] * basis).sum(tuple(range(1, like.ndim)))

    return jax.lax.fori_loop(0, math.prod(shape), add, jnp.zeros(len(like), like.dtype))
