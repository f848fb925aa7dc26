"""Sampling by autoregression: a request and its knobs to latents, in one compiled program for all knobs."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxgen.autoregressive import alphabet
from jaxgen.autoregressive.orders import Order
from jaxgen.conditioning.request import Request
from jaxgen.config import Positive, Share, Size, Whole

Scale = Size | tuple[Size, Size]


@dataclasses.dataclass(frozen=True)
class AutoregressiveSampler:
    """A network over tokens, their tokenizer, an order to decode them in, and the defaults of the knobs."""

    network: Any
    tokenizer: Any
    order: Order
    defaults: Mapping[str, float]

    @property
    def draws(self) -> tuple[str, ...]:
        """The names of the networks that do."""
        return ('model', *self.order.others)

    def knobs(self, **changes: float) -> dict[str, Array]:
        """The traced settings, converted once so that no change of type compiles again."""
        unknown = sorted(set(changes) - set(self.defaults))
        if unknown:
            raise ValueError(
                f"the autoregressive sampler has no knob '{unknown[0]}'; it has {', '.join(self.defaults)}."
            )
        values = {**self.defaults, **changes}
        if not all(map(math.isfinite, values.values())):
            raise ValueError(f'the knobs are {values}; they must be finite.')
        if not (values['temperature'] > 0 and 0 <= values['top_p'] <= 1):
            raise ValueError(
                f'temperature is {values["temperature"]} and top_p {values["top_p"]}; they must be above 0, '
                'and in [0, 1]. The likeliest code alone is top_k=1.'
            )
        whole = ('top_k', *self.order.whole)
        for name in whole:
            if values[name] < 0 or values[name] != int(values[name]):
                raise ValueError(f'{name} is {values[name]}; it must be a whole number, 0 or more.')
        self.order.check(values)
        return {
            name: jnp.asarray(value, jnp.int32 if name in whole else jnp.float32)
            for name, value in values.items()
        }

    def at(self, shape: tuple[int, ...]) -> 'AutoregressiveSampler':
        """The same for latents of another shape."""
        own = tuple(self.tokenizer.latent)
        if tuple(shape) == own:
            return self
        if not hasattr(self.network.module, 'at'):
            raise ValueError(f'this network draws latents of {own} alone, and {tuple(shape)} are asked for.')
        scales = stretched(self.tokenizer.scales, tuple(shape[:2]))
        alphabet.ascending(scales, self.network, shape, f'the schedule for latents of {tuple(shape)}')
        return self.by(scales)

    def by(self, scales: tuple[Scale, ...]) -> 'AutoregressiveSampler':
        """The same by other scales, for a network that takes any."""
        tokenizer = self.tokenizer.at(scales)
        network = dataclasses.replace(self.network, module=self.network.module.at(tokenizer.scales))
        order = self.order.at(tokenizer.scales)
        return dataclasses.replace(self, network=network, tokenizer=tokenizer, order=order)

    def held(self, batch: int) -> Any:
        """The shapes of what sampling so many images keeps from token to token."""
        return self.order.held(self.network, self.tokenizer, batch)

    def sample(self, params: Mapping[str, Any], request: Request, knobs: Mapping[str, Array]) -> Array:
        """Latents, one for each of the request's keys."""
        return self.decode(params, request, knobs)[0]

    def decode(
        self, params: Mapping[str, Any], request: Request, knobs: Mapping[str, Array]
    ) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
        """Latents, and by turns the tokens chosen and what the network said of them."""
        return self.order.decode(self.network, self.tokenizer, params, request, knobs)


def build(
    networks: Mapping[str, Any],
    tokenizer: Any,
    order: Order,
    guidance: float = 1.0,
    temperature: Positive = 1.0,
    top_k: Whole = 0,
    top_p: Share = 0.0,
    schedule: tuple[Scale, ...] = (),
) -> AutoregressiveSampler:
    """The sampler of a recipe; its numbers, and its order's, are defaults of knobs.

    guidance: 1 is none; a published `cfg` of VAR's is one less. top_k, top_p: draw from so many of the
    likeliest codes, or from as many as make up such a share; 0 is all of them. schedule: other scales than
    the tokenizer's, for a network that takes any.
    """
    order.fits(networks['model'], tokenizer)
    defaults = {'guidance': guidance, 'temperature': temperature, 'top_k': top_k, 'top_p': top_p}
    sampler = AutoregressiveSampler(networks['model'], tokenizer, order, defaults | dict(order.knobs))
    sampler.knobs()  # refuses defaults that make no sense
    if not schedule:
        return sampler
    if not hasattr(networks['model'].module, 'at'):
        raise ValueError("sampler.schedule is for networks that take any, such as model.name='flexvar'.")
    scales = tokenizer.at(schedule).scales
    alphabet.ascending(scales, networks['model'], tokenizer.latent, 'sampler.schedule')
    return sampler.by(scales)


def stretched(scales: tuple[tuple[int, int], ...], grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Scales up to another grid, each the same share of it; those that become equal are one.

    The first of several stays, as it is what a network begins with.
    """
    shares = [(rows / scales[-1][0], columns / scales[-1][1]) for rows, columns in scales]
    made = [tuple(max(1, round(share * side)) for share, side in zip(each, grid)) for each in shares]
    return tuple(dict.fromkeys((*scales[: len(scales) > 1], *made[len(scales) > 1 :])))
