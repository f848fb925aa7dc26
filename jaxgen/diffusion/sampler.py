"""Sampling by diffusion: a request and its knobs to latents, in one compiled program for all knobs."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.conditioning.request import Request
from jaxgen.config import Count, Positive, Range, Share, Size
from jaxgen.diffusion import loop
from jaxgen.diffusion.denoiser import Denoiser, network_denoiser
from jaxgen.diffusion.guidance import guided
from jaxgen.diffusion.path import Path, ends_in_noise, interpolate
from jaxgen.diffusion.prediction import NEAR, Prediction, span
from jaxgen.diffusion.solvers import Solver
from jaxgen.diffusion.solvers.corrector import corrected
from jaxgen.diffusion.spacings import Spacing, shifted, uniform

KNOBS = ('steps', 'guidance', 'low', 'high', 'rescale', 'shift', 'begin', 'end', 'last')
MOST_STEPS = 10**6


@dataclasses.dataclass(frozen=True)
class DiffusionSampler:
    """A network, its path and prediction, a solver, a spacing, and the defaults of the knobs."""

    network: Any
    path: Path
    prediction: Prediction
    solver: Solver
    spacing: Spacing
    shape: tuple[int, ...]
    defaults: Mapping[str, float]
    latest: float = 1.0  # the time that the prediction or the solver has a meaning up to
    guided_channels: int | None = None
    draws = ('model',)  # the networks that do

    def knobs(self, **changes: float) -> dict[str, Array]:
        """The traced settings, converted once so that no change of type compiles again."""
        unknown = sorted(set(changes) - set(self.defaults))
        if unknown:
            raise ValueError(
                f"the diffusion sampler has no knob '{unknown[0]}'; it has {', '.join(self.defaults)}."
            )
        values = {**self.defaults, **changes}
        steps, _, low, high, _, shift, begin, end, last = (values[name] for name in KNOBS)
        if not (shift > 0 and all(map(math.isfinite, values.values()))):
            raise ValueError(f'the knobs are {values}; they must be finite, and shift above 0.')
        if not 1 <= steps <= MOST_STEPS or steps != int(steps):
            raise ValueError(f'steps is {steps}; sampling takes a whole number in [1, {MOST_STEPS:,}].')
        if steps > (self.spacing.max_steps or steps):
            raise ValueError(
                f'steps is {steps}, and the spacing has a table up to {self.spacing.max_steps}; '
                'set sampler.spacing.max_steps.'
            )
        if not 0 <= low <= high <= 1:
            raise ValueError(f'the guidance interval is [{low}, {high}]; it must lie in [0, 1], low first.')
        self.spacing.check(values)
        if not (0 <= end < begin <= 1 and 0 <= last < begin and (last == 0 or last > end)):
            raise ValueError(
                f'sampling goes from begin {begin} to end {end} with a last step from {last}; they must be '
                'times in [0, 1] in the order begin, last, end (last 0: where the spacing has it).'
            )
        if begin > self.latest:
            raise ValueError(
                f'sampling begins at {begin}; above {self.latest} this prediction or solver has no meaning '
                'on this path, whose alpha is 0 at t = 1: leave begin out, or set '
                "prediction.output='velocity'."
            )
        return {
            name: jnp.asarray(value, jnp.int32 if name == 'steps' else jnp.float32)
            for name, value in values.items()
        }

    def at(self, shape: tuple[int, ...]) -> 'DiffusionSampler':
        """The same for latents of another shape."""
        return dataclasses.replace(self, shape=tuple(shape))

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

    def noise(self, keys: Array) -> Array:
        """What each key's walk starts from, before it has the path's scale."""
        return random.draw(jax.random.normal, random.fold(keys, 'noise'), self.shape)

    def walk(self, denoiser: Denoiser, cond: Any, request: Request, knobs: Mapping[str, Array]) -> Array:
        """The loop alone, for any denoiser, cached or guided in another way."""
        noise = self.noise(request.keys)
        steps, times = knobs['steps'], functools.partial(self.time, knobs=knobs)
        first = jnp.int32(0)
        if request.init is not None:  # enter the schedule at the first step that is not above its share
            grid = 1 - jnp.asarray(request.start, jnp.float32)
            first = jnp.clip(jnp.ceil(grid * steps - 1e-4).astype(jnp.int32), 0, steps)
        t = jnp.full(noise.shape[:1], times(first, steps), jnp.float32)
        init = jnp.zeros_like(noise) if request.init is None else request.init
        x = interpolate(self.path, init, noise, t)
        if self.solver.adaptive and request.mask is None:
            ends = times(first, steps), times(steps, steps)
            first, steps, times = 0, 1, lambda i, steps: jnp.where(i < 1, *ends)
        keep = loop.repaint(request.init, request.mask, noise, self.path)
        return loop.solve(denoiser, self.solver, times, steps, x, cond, request.keys, keep, first)

    def time(self, i: Array, steps: Array, knobs: Mapping[str, Array]) -> Array:
        """Where step i starts: the spacing, shifted, between `begin` and `end`, with its `last` step."""
        begin, end, last = knobs['begin'], knobs['end'], knobs['last']
        walked = jnp.where(last > 0, jnp.maximum(steps - 1, 1), steps)  # the steps before the last one
        t = shifted(self.spacing.time(jnp.minimum(i, walked), walked, knobs), knobs['shift'])
        low = jnp.where(last > 0, last, end)
        return jnp.where((last > 0) & (i >= steps), end, low + (begin - low) * t)


def build(
    networks: Mapping[str, Any],
    path: Path,
    prediction: Prediction,
    solver: Solver,
    latent: tuple[int, ...],
    resolution: int,
    spacing: Spacing | None = None,
    steps: Count = 50,
    guidance: float = 1.0,
    low: Share = 0.0,
    high: Share = 1.0,
    rescale: float = 0.0,
    shift: Positive = 1.0,
    shift_at: Size | None = None,
    begin: Share | None = None,
    end: Share | None = None,
    last: Share | None = None,
    guided_channels: Size | None = None,
    corrector: Annotated[int, Range(0, 3)] = 0,
) -> DiffusionSampler:
    """The sampler of a recipe; its numbers, and its spacing's, are defaults of knobs.

    shift_at: the resolution that `shift` is for, from which the recipe's own follows (arXiv:2403.03206).
    begin, end: the times to walk between, where not all the way: the network's prediction and the solver
    choose them, as SiT does. last: the time of the last step, where its solver cares. corrector: the order of
    UniC, after a solver that has no corrector of its own.
    """
    if corrector:
        solver = corrected(solver, corrector)
    spacing = spacing or uniform.build()
    if shift_at:
        shift = shift * resolution / shift_at
    by_data, by_noise = span(path, prediction)
    if solver.needs_data and ends_in_noise(path):
        by_noise = 1 - NEAR
    begin = by_noise if begin is None else begin
    if end is None:
        end = by_data if solver.adaptive else 0.0
    last = solver.last_step if last is None else last
    numbers = (steps, guidance, low, high, rescale, shift, begin, end, last)
    defaults = dict(zip(KNOBS, numbers)) | dict(spacing.knobs)
    sampler = DiffusionSampler(
        networks['model'],
        path,
        prediction,
        solver,
        spacing,
        tuple(latent),
        defaults,
        by_noise,
        guided_channels,
    )
    sampler.knobs()  # refuses defaults that make no sense
    return sampler
