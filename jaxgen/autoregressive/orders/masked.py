"""All tokens at once, the surest of which stay: MaskGIT's order (Chang et al., 2202.04200).

Every step draws all tokens that are hidden yet and keeps as many as a schedule says, those that the network
holds likeliest, with noise that falls to nothing on the way. Or those that come next in a Halton sequence,
which spreads them evenly (Besnier et al., 2503.17076). Known tokens are never hidden: those that a mask
keeps, and of a whole picture a share at random. The number of steps is traced.
"""

# B batch, N tokens

import dataclasses
import itertools
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import keys as random
from jaxgen.autoregressive import alphabet, choose, schedules
from jaxgen.autoregressive.alphabet import Alphabet
from jaxgen.autoregressive.orders import Knobs, kept, twice
from jaxgen.conditioning.request import Request
from jaxgen.config import Count, NonNegative, Positive


@dataclasses.dataclass(frozen=True)
class Masked:
    """The walk; `surest` are the likeliest tokens or those next in a Halton sequence."""

    schedule: schedules.Name
    surest: Literal['likeliest', 'halton']
    growth: Literal['power', 'cosine']
    knobs: Mapping[str, float]
    whole = ('steps',)
    others = ()

    def fits(self, network: Any, tokenizer: Any) -> None:
        """Refuse a network that no token can be hidden from, and a tokenizer that is not its own kind."""
        alphabet.goes(network, 'bidirectional', "sampler.order 'masked'")
        alphabet.between(tokenizer, network)

    def at(self, scales: tuple[tuple[int, int], ...]) -> 'Masked':
        """The same, which scales are nothing to."""
        return self

    def check(self, knobs: Mapping[str, float]) -> None:
        """Refuse knobs that make no sense."""
        if knobs['steps'] < 1:
            raise ValueError(f'steps is {knobs["steps"]}; it must be 1 or more.')
        for name, least in (('noise', 0), ('ramp', 0)):
            if knobs[name] < least:
                raise ValueError(f'{name} is {knobs[name]}; it must be {least} or more.')
        for name in ('cooling', 'exponent'):
            if name in knobs and not knobs[name] > 0:
                raise ValueError(f'{name} is {knobs[name]}; it must be above 0.')

    def held(self, network: Any, tokenizer: Any, batch: int) -> Any:
        """The tokens so far, and at which turn each was settled."""
        letters = alphabet.between(tokenizer, network)

        def start() -> tuple[Array, Array]:
            tokens = letters.empty(batch)
            return tokens, jnp.zeros(tokens.shape[:2], jnp.int32)

        return jax.eval_shape(start)

    def decode(
        self, network: Any, tokenizer: Any, params: Mapping[str, Any], request: Request, knobs: Knobs
    ) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
        """Latents, the tokens, and at which turn each was settled, known ones at turn 0."""
        letters = alphabet.between(tokenizer, network)
        tokens, hidden = self._begun(letters, params, request, knobs)
        cond = twice(request.cond, request.null)

        def said(tokens: Array, hidden: Array) -> Array:
            return network(params['model'], twice(tokens, tokens), twice(hidden, hidden), cond)[0]

        tokens, turns = self.walk(said, letters, tokens, hidden, request.keys, knobs)
        return letters.latents(params, tokens), (tokens,), (turns,)

    def walk(
        self,
        said: Callable[[Array, Array], Array],
        letters: Alphabet,
        tokens: Array,
        hidden: Array,
        keys: Array,
        knobs: Knobs,
    ) -> tuple[Array, Array]:
        """Hidden tokens [B, N] drawn by what `said(tokens, hidden)` says, and each one's turn."""
        first, steps, keys = hidden.sum(1, dtype=jnp.int32), knobs['steps'], random.fold(keys, 'masked')
        sequence = jnp.asarray(halton(letters.scales, tokens.shape[1])) if self.surest == 'halton' else None

        def step(carry: tuple) -> tuple:
            turn, tokens, hidden, turns = carry
            keys_B = random.split_each(keys, turn)
            settings = self.settings(knobs, turn)
            new, sureness = letters.drawn(said(tokens, hidden), random.fold(keys_B, 'token'), settings)
            tokens = jnp.where(_like(hidden, tokens), new, tokens)
            done = (turn + 1) / steps
            if sequence is None:
                noise = choose.gumbel(random.fold(keys_B, 'noise'), hidden.shape[1:])
                sureness = sureness + knobs['noise'] * (1 - done) * noise
            else:
                sureness = jnp.broadcast_to(-sequence.astype(jnp.float32), hidden.shape)
            still = self._left(done, first, hidden.sum(1, dtype=jnp.int32), knobs)
            still = jnp.where(turn + 1 == steps, 0, still)
            stays = _least(jnp.where(hidden, sureness, jnp.inf), still)
            turns = jnp.where(hidden & ~stays, turn + 1, turns)
            return turn + 1, tokens, hidden & stays, turns

        start = jnp.int32(0), tokens, hidden, jnp.zeros(hidden.shape, jnp.int32)
        _, tokens, _, turns = jax.lax.while_loop(lambda carry: carry[0] < steps, step, start)
        return tokens, turns

    def _left(self, done: Array, first: Array, now: Array, knobs: Knobs) -> Array:
        """How many [B] stay hidden of `first` once and `now`: at least one is settled, and one left."""
        share = schedules.hidden(self.schedule, done, first, knobs.get('exponent', 1.0))
        count = first * share
        # Where a schedule gives no whole number, published code rounds as its order is.
        count = jnp.floor(count) if self.surest == 'likeliest' else first - jnp.floor(first - count)
        return jnp.clip(count.astype(jnp.int32), 1, jnp.maximum(now - 1, 1))

    def settings(self, knobs: Knobs, turn: Array) -> dict[str, Array]:
        """The knobs at a turn: guidance grows, and the temperature is multiplied up to `cooling`."""
        steps = knobs['steps'].astype(jnp.float32)
        share = turn / jnp.maximum(steps - 1, 1)
        if self.growth == 'power':
            grown = share ** knobs['ramp']
        else:
            grown = (1 - jnp.cos(math.pi * (turn / steps) ** knobs['ramp'])) / 2
        return {
            **knobs,
            'guidance': 1 + (knobs['guidance'] - 1) * grown,
            'temperature': knobs['temperature'] * (1 + (knobs['cooling'] - 1) * share),
        }

    def _begun(
        self, letters: Alphabet, params: Mapping[str, Any], request: Request, knobs: Knobs
    ) -> tuple[Array, Array]:
        """Tokens before the first step, and which of them [B, N] are hidden."""
        tokens = letters.empty(len(request.keys))
        hidden = jnp.ones(tokens.shape[:2], bool)
        if request.init is None:
            return tokens, hidden
        known = jnp.broadcast_to(letters.tokens(params, request.init), tokens.shape).astype(tokens.dtype)
        keep = jnp.concatenate(kept(letters.scales, request.mask), axis=1)
        keep = jnp.repeat(keep, hidden.shape[1] // keep.shape[1], axis=1)
        # As in training, a share of the schedule walked already leaves any tokens, in no order.
        start = jnp.asarray(request.start, jnp.float32)
        exponent = knobs.get('exponent', 1.0)
        share = schedules.hidden(self.schedule, 1 - start, hidden.shape[1], exponent)
        count = jnp.ceil(hidden.shape[1] * share)
        chance = random.draw(jax.random.uniform, random.fold(request.keys, 'start'), hidden.shape[1:])
        hidden = ~keep & _least(chance, jnp.full(len(tokens), count, jnp.int32))
        return jnp.where(_like(hidden, tokens), letters.empty(len(request.keys)), known), hidden


def halton(scales: tuple[tuple[int, int], ...], tokens: int) -> np.ndarray:
    """The place [tokens] of each token in a sequence of all, coarse scales first, in each as points of a
    Halton sequence (its bases 2 and 3) first fall on it.
    """
    places, before = [], 0
    for rows, columns in scales:
        found: dict[int, int] = {}
        for point in itertools.count(1):
            found.setdefault(_part(2, point, rows) * columns + _part(3, point, columns), len(found))
            if len(found) == rows * columns:
                break
        places += [before + found[place] for place in range(rows * columns)]
        before += rows * columns
    groups = tokens // before
    return np.repeat(np.asarray(places, np.int32) * groups, groups) + np.tile(np.arange(groups), before)


def _part(base: int, point: int, parts: int) -> int:
    """Into which of equal parts of [0, 1) a point falls: its digits, mirrored behind the comma."""
    value, scale = 0, 1
    while point:
        value, scale, point = value * base + point % base, scale * base, point // base
    return value * parts // scale


def _least(values_BN: Array, counts_B: Array) -> Array:
    """Which are the least `counts` of each row, exactly so many."""
    rank = jnp.argsort(jnp.argsort(values_BN, axis=1), axis=1)
    return rank < counts_B[:, None]


def _like(flags_BN: Array, tokens: Array) -> Array:
    """Flags with the axes that tokens have."""
    return flags_BN.reshape(*flags_BN.shape, *[1] * (tokens.ndim - 2))


def build(
    steps: Count = 12,
    schedule: schedules.Name = 'cosine',
    exponent: Positive = 2.0,
    surest: Literal['likeliest', 'halton'] = 'likeliest',
    noise: NonNegative = 4.5,
    ramp: NonNegative = 1.0,
    growth: Literal['power', 'cosine'] = 'power',
    cooling: Positive = 1.0,
) -> Masked:
    """The order; its numbers are defaults of knobs.

    exponent: that of the schedule 'power'. surest: what stays is the likeliest, or by 'halton' what comes
    next. noise: how much chance there is in the former, falling evenly to none. ramp: the power of the share
    of steps by which guidance grows, 0 being the same at all; with growth 'cosine' it grows as MaskBit's.
    cooling: what the temperature is multiplied by at the last step, and in between by even steps.
    """
    knobs = {'steps': steps, 'noise': noise, 'ramp': ramp, 'cooling': cooling}
    if schedule == 'power':
        knobs['exponent'] = exponent
    return Masked(schedule, surest, growth, types.MappingProxyType(knobs))
