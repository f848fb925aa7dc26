"""Masked tokens: which are the hidden ones, told all the others (MaskGIT, Chang et al., 2202.04200).

A share of an image's tokens is hidden, by a schedule at a place drawn evenly, so that the network learns
every step of sampling. What counts are the tokens that are hidden, or all of them, as in some published
trainings.
"""

# B batch, N tokens of all scales

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen import keys as random
from jaxgen.autoregressive import alphabet, schedules
from jaxgen.config import Part, Positive, Share
from jaxgen.objectives import Loss, Objective, Phase


def build(
    networks: Mapping[str, Any],
    conditioner: Any,
    tokenizer: Any,
    schedule: schedules.Name = 'cosine',
    exponent: Positive = 2.0,
    smoothing: Part = 0.0,
    drop: Part = 0.1,
    everywhere: bool = False,
    furthest: Share = 1.0,
) -> Objective:
    """Train 'model' (and the conditioner's own networks) to tell the tokenizer's hidden tokens.

    schedule: how many are hidden, with the `exponent` of 'power'; smoothing: the share of the target that all
    codes have alike; drop: how often the condition is left out, for guidance; everywhere: tokens that are
    seen count too; furthest: how much of the schedule is walked at most, so that few are hidden never.
    """
    alphabet.goes(networks['model'], 'bidirectional', "objective 'masked'")
    letters = alphabet.between(tokenizer, networks['model'])
    hide = functools.partial(hiding, schedule, exponent, furthest=furthest)
    common = (networks['model'], conditioner, tokenizer, letters, hide)
    loss = telling(*common, smoothing, drop, everywhere, train=True)
    held_out = telling(*common, 0.0, 0.0, everywhere=False, train=False)
    phase = Phase('masked', ('model', *conditioner.trains), loss)
    return Objective((phase,), held_out=held_out, reads=tokenizer.reads, uses=tuple(tokenizer.holds))


def telling(
    network: Any,
    conditioner: Any,
    tokenizer: Any,
    letters: alphabet.Alphabet,
    hide: Callable[[Array, int], Array],
    smoothing: float,
    drop: float,
    everywhere: bool,
    train: bool,
) -> Loss:
    """The loss of a network's tokens where `hide(keys, tokens)` says."""

    def loss(params: Mapping, state: Any, frozen: Mapping, batch: Mapping, keys: Array, step: Array) -> tuple:
        known = {**frozen['networks'], **params}
        latents = tokenizer.encode(known, batch, random.fold(keys, 'encode'))
        dropped = random.draw(jax.random.uniform, random.fold(keys, 'drop')) < drop
        cond = conditioner.embed(known, batch, dropped, random.fold(keys, 'embed'))
        tokens = letters.tokens(known, latents)
        hidden = hide(random.fold(keys, 'hide'), tokens.shape[1])
        drops = getattr(network.module, 'drops', None) if train else None
        per_layer = drops(random.fold(keys, 'layers')) if drops else None
        out, _, _ = network(known['model'], tokens, hidden, cond, per_layer=per_layer, train=train)
        errors = letters.loss(out, tokens, smoothing)
        counted = jnp.ones_like(errors) if everywhere else hidden.astype(errors.dtype)
        metrics = alphabet.errors_by_scale(errors, hidden.astype(errors.dtype), letters.scales)
        if jnp.issubdtype(tokens.dtype, jnp.integer):
            right = (jnp.argmax(out, -1) == tokens) & hidden
            metrics['accuracy'] = (right.sum().astype(jnp.float32), hidden.sum().astype(jnp.float32))
        return (errors * counted).sum(), counted.sum(), state, metrics

    return loss


def hiding(
    schedule: schedules.Name, exponent: float, keys_B: Array, tokens: int, furthest: float = 1.0
) -> Array:
    """Which tokens [B, N] are hidden: at least one, as many as the schedule says where each key falls."""
    place = furthest * random.draw(jax.random.uniform, random.fold(keys_B, 'place'))
    share = schedules.hidden(schedule, place, tokens, exponent)
    chance = random.draw(jax.random.uniform, random.fold(keys_B, 'which'), (tokens,))
    rank = jnp.argsort(jnp.argsort(chance, axis=1), axis=1)
    return rank < jnp.maximum(1, jnp.floor(tokens * share))[:, None]
