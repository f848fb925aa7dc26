"""Sampling by diffusion: a request and its knobs to latents, in one compiled program for all knobs."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.conditioning.request import Request
from jaxgen.diffusion import loop, spacing
from jaxgen.diffusion.denoiser import Denoiser, network_denoiser
from jaxgen.diffusion.guidance import guided
from jaxgen.diffusion.path import Path, interpolate
from jaxgen.diffusion.prediction import Prediction
from jaxgen.diffusion.solvers import Solver

KNOBS = ('steps', 'guidance', 'low', 'high', 'rescale', 'shift')


@dataclasses.dataclass(frozen=True)
class DiffusionSampler:
    """A network, its path and prediction, a solver, and the defaults of the knobs."""

    network: Any
    path: Path
    prediction: Prediction
    solver: Solver
    shape: tuple[int, ...]
    defaults: tuple[float, ...]
    guided_channels: int | None = None

    def knobs(self, **changes: float) -> dict[str, Array]:
        """The traced settings, converted once so that no change of type compiles again."""
        unknown = sorted(set(changes) - set(KNOBS))
        if unknown:
            raise ValueError(f"the diffusion sampler has no knob '{unknown[0]}'; it has {', '.join(KNOBS)}.")
        values = dict(zip(KNOBS, self.defaults)) | changes
        steps, low, high, shift = (values[name] for name in ('steps', 'low', 'high', 'shift'))
        if steps < 1 or steps != int(steps):
            raise ValueError(f'steps is {steps}; sampling takes a whole number of them, at least 1.')
        if not 0 <= low <= high <= 1:
            raise ValueError(f'the guidance interval is [{low}, {high}]; it must lie in [0, 1], low first.')
        if not (shift > 0 and all(map(math.isfinite, values.values()))):
            raise ValueError(f'the knobs are {values}; they must be finite, and shift above 0.')
        return {
            name: jnp.asarray(value, jnp.int32 if name == 'steps' else jnp.float32)
            for name, value in values.items()
        }

    def denoiser(self, params: Mapping[str, Any]) -> Denoiser:
        """The plain denoiser of the recipe's network."""

        def network(x: Array, t: Array, cond: Any) -> tuple:
            return self.network(params['model'], x, t, cond)

        return network_denoiser(network, self.path, self.prediction)

    def sample(self, params: Mapping[str, Any], request: Request, knobs: Mapping[str, Array]) -> Array:
        """Latents of the sampler's shape, one for each of the request's keys."""
        denoiser = guided(
            self.denoiser(params),
            knobs['guidance'],
            knobs['low'],
            knobs['high'],
            knobs['rescale'],
            self.guided_channels,
        )
        return self.walk(denoiser, (request.cond, request.null), request, knobs)

    def walk(self, denoiser: Denoiser, cond: Any, request: Request, knobs: Mapping[str, Array]) -> Array:
        """The loop alone, for any denoiser, cached or guided in another way."""
        noise = random.draw(jax.random.normal, random.fold(request.keys, 'noise'), self.shape)
        steps = knobs['steps']

        def space(i: Array, steps: Array) -> Array:
            return spacing.uniform(i, steps, knobs['shift'])

        if request.init is None:
            first, x = 0, noise * self.path.sigma(jnp.float32(1))
        else:  # enter the schedule at the first step that is not above its share
            grid = 1 - jnp.asarray(request.start, jnp.float32)
            first = jnp.clip(jnp.ceil(grid * steps - 1e-4).astype(jnp.int32), 0, steps)
            t = jnp.full(noise.shape[:1], space(first, steps), jnp.float32)
            x = interpolate(self.path, request.init, noise, t)
        keep = loop.repaint(request.init, request.mask, noise, self.path)
        return loop.solve(denoiser, self.solver, space, steps, x, cond, request.keys, keep, first)


def build(
    networks: Mapping[str, Any],
    path: Path,
    prediction: Prediction,
    solver: Solver,
    latent: tuple[int, ...],
    steps: int = 50,
    guidance: float = 1.0,
    low: float = 0.0,
    high: float = 1.0,
    rescale: float = 0.0,
    shift: float = 1.0,
    guided_channels: int | None = None,
) -> DiffusionSampler:
    """The sampler of a recipe; steps, guidance, low, high, rescale and shift are defaults of its knobs."""
    if prediction.output == 'noise' and path.alpha(jnp.ones(())) < 1e-5:
        raise ValueError(
            'a noise prediction says nothing of the data where alpha is 0, and this path begins there: '
            "set prediction.output='velocity' or 'v', or path.name='vp'."
        )
    defaults = (steps, guidance, low, high, rescale, shift)
    sampler = DiffusionSampler(
        networks['model'], path, prediction, solver, tuple(latent), defaults, guided_channels
    )
    sampler.knobs()  # refuses defaults that make no sense
    return sampler
