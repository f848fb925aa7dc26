"""Next-scale prediction: which code is each token of each scale, told the scales before it (VAR, 2404.02905).

Cross-entropy over the tokens of all scales at once, every one counting the same. Scales may join one after
another, coarse to fine (progressive training): as no token sees a later scale, what is left out changes
nothing for those before it. Or every step draws its scales, where the network takes any (FlexVAR,
2502.20313). What is told of the scales before may have mistakes, for which a residual tokenizer's later
scales make up: the self-correction of Infinity (2412.04431), there of bits.
"""

# B batch

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import keys as random
from jaxgen.autoregressive.alphabet import ascending, cross_entropy, goes
from jaxgen.config import Count, Part, Size, Whole
from jaxgen.objectives import Loss, Objective, Phase


def build(
    networks: Mapping[str, Any],
    conditioner: Any,
    tokenizer: Any,
    smoothing: Part = 0.0,
    drop: Part = 0.1,
    joined: Whole = 0,
    first: Count = 5,
    rise: Count = 1,
    schedules: tuple[tuple[Size | tuple[Size, Size], ...], ...] = (),
    mistakes: Part = 0.0,
    network: str = 'model',
) -> Objective:
    """Train a network (and the conditioner's own) to predict the tokenizer's codes.

    smoothing: the share of the target that all codes have alike; drop: how often the condition is left out,
    for guidance. joined: the step from which on all scales count, the first `first` of them from the
    beginning and the others one by one, each rising to its weight in `rise` steps; 0 is all at once.
    schedules: more rows of scales than the tokenizer's, for a network that takes any; each step draws one of
    them all, which are as many compiled programs.
    mistakes: the most of an image's tokens that are told as those of another place of their scale, for later
    scales to make up for. network: the one that trains, such as a refiner beside a model that has trained.
    """
    if 'codes' not in getattr(tokenizer, 'provides', {}):
        raise ValueError(
            "objective 'next_scale' is of codes; it wants tokenizer.name='vqgan' with a bottleneck "
            'that has some.'
        )
    begins = _begins(len(tokenizer.scales), joined, first)
    if joined and schedules:
        raise ValueError('objective.joined is of one row of scales, and objective.schedules gives several.')
    goes(networks[network], 'scalewise', "objective 'next_scale'")
    if schedules and not hasattr(networks[network].module, 'at'):
        raise ValueError("objective.schedules is for networks that take any, such as model.name='flexvar'.")
    forms = [(networks[network], tokenizer)]
    for other in map(tokenizer.at, schedules):
        ascending(other.scales, networks[network], tokenizer.latent, 'a row of objective.schedules')
        module = networks[network].module.at(other.scales)
        forms.append((dataclasses.replace(networks[network], module=module), other))

    def weights(step: Array) -> Array:
        risen = jnp.clip((step + 1 - begins) / rise, 0.01, 1)
        return jnp.where(begins == 0, 1, jnp.where(step >= begins, risen, 0))

    loss = predicting(
        network, conditioner, forms, smoothing, drop, mistakes, weights if joined else None, train=True
    )
    held_out = predicting(
        network, conditioner, forms[:1], 0.0, 0.0, 0.0, None, train=False, alone=not schedules
    )
    phase = Phase('next_scale', (network, *conditioner.trains), loss)
    return Objective((phase,), held_out=held_out, reads=tokenizer.reads, uses=tuple(tokenizer.holds))


def predicting(
    name: str,
    conditioner: Any,
    forms: Sequence[tuple[Any, Any]],
    smoothing: float,
    drop: float,
    mistakes: float,
    weights: Callable[[Array], Array] | None,
    train: bool,
    alone: bool = True,
) -> Loss:
    """The loss of the network `name` by the scales of one of its `forms`, (network, tokenizer), drawn a step.

    `weights(step)` are those of the scales. All scales' errors are told where there is one row of them, and
    `alone` says so; else the last one's.
    """
    alone = alone and len(forms) == 1

    def by(
        form: tuple[Any, Any], known: Mapping, latents: Array, cond: Any, keys: Array, step: Array
    ) -> tuple:
        network, tokenizer = form
        as_told = mistaken(mistakes, random.fold(keys, 'mistakes'))
        codes = tokenizer.quantize(known, latents, as_told)
        told = tokenizer.teacher(known, tuple(map(as_told, range(len(codes)), codes)))
        codes = jnp.concatenate(codes, 1)
        per_layer = network.module.drops(random.fold(keys, 'layers')) if train else None
        logits, _, _ = network(known[name], told, None, cond, per_layer=per_layer, train=train)
        errors = cross_entropy(logits, codes, smoothing)
        right = (jnp.argmax(logits, -1) == codes).astype(jnp.float32)
        lengths = np.array([rows * columns for rows, columns in tokenizer.scales])
        parts = [part.mean(1) for part in jnp.split(errors, np.cumsum(lengths)[:-1], axis=1)]
        if weights is not None:
            errors = errors * jnp.repeat(weights(step), lengths, total_repeat_length=lengths.sum())
        return errors.mean(1), right.mean(1), parts if alone else parts[-1:]

    def loss(params: Mapping, state: Any, frozen: Mapping, batch: Mapping, keys: Array, step: Array) -> tuple:
        known, tokenizer = {**frozen['networks'], **params}, forms[0][1]
        latents = tokenizer.encode(known, batch, random.fold(keys, 'encode'))
        dropped = random.draw(jax.random.uniform, random.fold(keys, 'drop')) < drop
        cond = conditioner.embed(known, batch, dropped, random.fold(keys, 'embed'))
        # Shapes are the scales', so the whole batch has one row of them, and its first example draws it.
        chosen = jax.random.randint(random.fold(keys[0], 'schedule'), (), 0, len(forms))
        branches = [functools.partial(by, form) for form in forms]
        if len(forms) > 1:  # the gradient of a switch would keep what any of its branches needs
            branches = [jax.checkpoint(branch) for branch in branches]
        errors, right, parts = jax.lax.switch(chosen, branches, known, latents, cond, keys, step)
        names = [f'{rows}x{columns}' for rows, columns in tokenizer.scales] if alone else ['last']
        weight = jnp.float32(errors.size)
        metrics = {f'error_{name}': (part.sum(), weight) for name, part in zip(names, parts, strict=True)}
        return errors.sum(), weight, state, metrics | {'accuracy': (right.sum(), weight)}

    return loss


def mistaken(most: float, keys_B: Array) -> Callable[[int, Array], Array]:
    """What is told of codes [B, L] of scale k: some, of each image another share up to `most`, are those of
    another place, so that there is too much of something or nothing at all, as in a draft gone wrong.
    """

    def told(k: int, codes_BL: Array) -> Array:
        if not most:
            return codes_BL
        keys, length = random.split_each(keys_B, k), codes_BL.shape[1:]
        share_B1 = most * random.draw(jax.random.uniform, random.fold(keys_B, 'share'), (1,))
        wrong_BL = random.draw(jax.random.uniform, random.fold(keys, 'which'), length) < share_B1
        place_BL = (random.draw(jax.random.uniform, random.fold(keys, 'where'), length) * length[0]).astype(
            int
        )
        return jnp.where(wrong_BL, jnp.take_along_axis(codes_BL, place_BL, axis=1), codes_BL)

    return told


def _begins(count: int, joined: int, first: int) -> Array:
    """The step at which each scale begins to count."""
    if not joined:
        return jnp.zeros(count)
    if first >= count:
        raise ValueError(
            f'objective.first is {first} of {count} scales, and objective.joined {joined}: nothing is left '
            'to join; set first lower, or joined=0.'
        )
    return jnp.asarray(np.maximum(0, np.arange(count) - first + 1) * (joined / (count - first)))
