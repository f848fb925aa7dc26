"""The train step of one phase: gradients over micro-batches, the optimizer's update, the averages.

It knows no objective by name. Micro-batches are summed and divided once by their total weight, so that
accumulation equals the large batch also where a loss masks; every example keeps its own key. What the guard
does not let pass leaves everything as it was, but for its counts.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxgen import keys as random
from jaxgen.objectives import Loss, Phase
from jaxgen.training import ema as average
from jaxgen.training.ema import Ema
from jaxgen.training.guard import Guard
from jaxgen.training.state import TrainState
from jaxgen.training.trainable import Trainable, merged, part


def example_keys(key: Array, step: Array, purpose: str, count: int) -> Array:
    """One key for each example of a step's batch."""
    step_key = random.fold(jax.random.fold_in(key, step), purpose)
    return random.split_examples(step_key, jnp.arange(count))


def number(step: int) -> np.ndarray:
    """A step's number as the compiled steps take it, always of one type."""
    return np.asarray(step, np.int32)


def make_step(
    phase: Phase,
    trains: Mapping[str, Trainable],
    optimizer: optax.GradientTransformation,
    averaged: tuple[str, ...],
    averages: Ema,
    guard: Guard,
    accumulate: int,
) -> Callable:
    """`step(state, frozen, batch, key, number) -> (state, metrics)`, pure and ready for jit."""

    def step(
        state: TrainState, frozen: Mapping, batch: Mapping, key: Array, number: Array
    ) -> tuple[TrainState, dict]:
        frozen = {**frozen, 'ema': state.ema}
        count = len(jax.tree.leaves(batch)[0])
        keys = example_keys(key, number + state.progress['data_offset'], phase.name, count)
        trained = part(state.params, trains)

        def loss(trained: Mapping, inner: Any, micro: Mapping, micro_keys: Array) -> tuple:
            total, weight, inner, metrics = phase.loss(
                merged(state.params, trained), inner, frozen, micro, micro_keys, number
            )
            return total, (weight, inner, {**metrics, 'loss': (total, weight)})

        gradients, weight, inner, metrics = _accumulated(loss, trained, state.state, batch, keys, accumulate)
        gradients = jax.tree.map(lambda g: g / weight, gradients)
        norm = optax.tree.norm(gradients)
        healthy, counts = guard.judge(state.progress['phases'][phase.name], metrics['loss'][0], norm)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer[phase.name], trained)
        params = merged(state.params, optax.apply_updates(trained, updates))
        moved = state.replace(
            params=params if phase.settle is None else phase.settle(params, inner),
            optimizer={**state.optimizer, phase.name: optimizer_state},
            state=inner,
        )
        moved = _averaged(moved, averages, tuple(name for name in trains if name in averaged))
        state = jax.tree.map(
            lambda new, old: new if new is old else jnp.where(healthy, new, old), moved, state
        )
        progress = {**state.progress, 'phases': {**state.progress['phases'], phase.name: counts}}
        metrics = {**metrics, 'gradient_norm': (norm, jnp.float32(1))}
        # What a skipped step measured is left out of the means.
        metrics = jax.tree.map(lambda value: jnp.where(healthy, value, jnp.zeros_like(value)), metrics)
        return state.replace(progress=progress), metrics

    return step


def _averaged(state: TrainState, averages: Ema, names: tuple[str, ...]) -> TrainState:
    """The state with its parameters of those networks gone into their averages."""
    counts = state.progress['averaged']

    def moved(trees: Mapping, width: float | None) -> dict[str, Any]:
        return {
            **trees,
            **{
                name: average.update(trees[name], state.params[name], averages.rate(counts[name], width))
                for name in names
            },
        }

    return state.replace(
        ema=moved(state.ema, None),
        profiles={label: moved(state.profiles[label], width) for label, width in averages.further.items()},
        progress={
            **state.progress,
            'averaged': {name: count + (name in names) for name, count in counts.items()},
        },
    )


def _accumulated(
    loss: Callable, trained: Mapping, inner: Any, batch: Mapping, keys: Array, count: int
) -> tuple:
    """Sums of gradients, weights and metrics over `count` micro-batches, walking the objective's state."""
    gradient = jax.grad(loss, has_aux=True)
    if count == 1:
        gradients, (weight, inner, metrics) = gradient(trained, inner, batch, keys)
        return gradients, weight, inner, metrics
    # Interleaved, so that each device keeps its own rows: micro-batch j is rows j, j + count, ...
    rows = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, count, *a.shape[1:]), 1, 0), (batch, keys))

    def body(carry: tuple, row: tuple) -> tuple:
        sums, inner = carry
        gradients, (weight, inner, metrics) = gradient(trained, inner, *row)
        return (jax.tree.map(jnp.add, sums, (gradients, weight, metrics)), inner), None

    first = jax.tree.map(lambda a: a[0], rows)
    shapes = jax.eval_shape(gradient, trained, inner, *first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[1][0], shapes[1][2]))
    ((gradients, weight, metrics), inner), _ = jax.lax.scan(body, (zeros, inner), rows)
    return gradients, weight, inner, metrics


def make_held_out(loss: Loss) -> Callable:
    """`held_out(params, ema, state, frozen, batch, key, number) -> metrics`: the loss without gradients."""

    def held_out(
        params: Mapping, ema: Mapping, state: Any, frozen: Mapping, batch: Mapping, key: Array, number: Array
    ) -> dict:
        keys = example_keys(key, number, 'held_out', len(jax.tree.leaves(batch)[0]))
        total, weight, _, metrics = loss(
            {**params, **ema}, state, {**frozen, 'ema': ema}, batch, keys, number
        )
        return {**metrics, 'loss': (total, weight)}

    return held_out
