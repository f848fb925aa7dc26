"""What keeps a run alive: steps that would ruin it are skipped, and a run that is stuck goes back or stops.

A step whose loss or gradient is not finite, or whose gradient is much longer than usual (the spikes of
Chowdhery et al. 2022, arXiv:2204.02311, who went back some 100 steps and left out the data that followed),
changes nothing but counters, on the device, without the host. The host reads these where it logs or saves
anyway; after `patience` skipped steps in a row it turns back to a checkpoint and takes other data from there.
All of it is counted in the state, so that a resumed run does the same.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.config import Count, NonNegative, Whole
from jaxgen.training.state import TrainState

SETTLING = 20  # updates before the usual length of a gradient is known
MEMORY = 100  # updates over which it is averaged


@dataclasses.dataclass(frozen=True)
class Guard:
    """`spike`: skip a gradient so many times longer than usual, 0 none; `rollbacks` to one checkpoint."""

    spike: float
    patience: int
    rollbacks: int

    def judge(self, counts: Mapping[str, Array], loss: Array, norm: Array) -> tuple[Array, dict[str, Array]]:
        """Whether a phase's step may be taken, and its counts after it."""
        healthy = jnp.isfinite(loss) & jnp.isfinite(norm)
        if self.spike:
            settled = counts['taken'] >= SETTLING
            healthy &= ~settled | (norm <= self.spike * counts['usual'])
        rate = jnp.maximum(1 / (counts['taken'] + 1), 1 / MEMORY)
        usual = counts['usual'] + rate * (norm - counts['usual'])
        return healthy, {
            'taken': counts['taken'] + healthy,
            'skipped': counts['skipped'] + ~healthy,
            'row': jnp.where(healthy, 0, counts['row'] + 1),
            'usual': jnp.where(healthy, usual, counts['usual']),
        }


def build(spike: NonNegative = 0.0, patience: Count = 5, rollbacks: Whole = 2) -> Guard:
    """The guard of a config.

    spike: skip a step whose gradient is so many times longer than of late (0: only what is not finite);
    patience: skipped steps in a row before the run turns back to its last checkpoint; rollbacks: how often it
    may turn back to the same one before it stops (0: it stops at once).
    """
    if 0 < spike <= 1:
        raise ValueError(f'guard.spike is {spike}; give a factor well above 1, such as 10, or 0 for none.')
    return Guard(spike, patience, rollbacks)


def init(phases: Sequence[str], averaged: Sequence[str]) -> dict[str, Any]:
    """The counts before the first step; every one has a buffer of its own, safe to donate."""

    def zero() -> Array:
        return jnp.zeros((), jnp.int32)

    return {
        'phases': {
            name: {'taken': zero(), 'skipped': zero(), 'row': zero(), 'usual': jnp.zeros((), jnp.float32)}
            for name in phases
        },
        'averaged': {name: zero() for name in averaged},
        'data_offset': zero(),
        'rollbacks': zero(),
        'rolled_to': zero(),
    }


def inspect(guard: Guard, state: TrainState, last: bool) -> tuple[bool, tuple[str, ...]]:
    """Whether the step was taken by all phases, and the phases that are stuck; waits for the device.

    At the last step one skipped step is enough, where the state itself is what is no longer finite.
    """
    rows = {name: counts['row'] for name, counts in state.progress['phases'].items()}
    rows = {name: int(row) for name, row in jax.device_get(rows).items()}
    calm = not any(rows.values())
    patience = guard.patience if calm or not last or _sound((state.params, state.ema, state.state)) else 1
    return calm, tuple(name for name, row in rows.items() if row >= patience)


def skipped(progress: Mapping[str, Any]) -> dict[str, float]:
    """How many steps each phase has skipped so far, as metrics."""
    counts = {name: counts['skipped'] for name, counts in progress['phases'].items()}
    return {f'{name}/skipped': float(count) for name, count in jax.device_get(counts).items()}


@jax.jit
def _sound(tree: Any) -> Array:
    """Whether all numbers of a tree are finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


def may_turn_back(guard: Guard, progress: Mapping[str, Any], target: int) -> bool:
    """Whether a stuck run may go back to a checkpoint once more."""
    again = int(progress['rollbacks']) if int(progress['rolled_to']) == target else 0
    return again < guard.rollbacks


def turned_back(
    restored: Mapping[str, Any], stuck_progress: Mapping[str, Any], target: int, step: int
) -> dict[str, Any]:
    """The counts of a checkpoint's state once more at `target`, on data after all that `step` had seen."""
    before = jax.device_get(stuck_progress)
    again = int(before['rollbacks']) if int(before['rolled_to']) == target else 0
    changed = {
        'data_offset': int(before['data_offset']) + step - target,
        'rollbacks': again + 1,
        'rolled_to': target,
    }
    placed = {name: _like(restored[name], value) for name, value in changed.items()}
    phases = {
        name: {
            **counts,
            'skipped': _like(counts['skipped'], before['phases'][name]['skipped']),
            'row': _like(counts['row'], 0),
        }
        for name, counts in restored['phases'].items()
    }
    return {**restored, **placed, 'phases': phases}


def _like(leaf: Array, value: int) -> Array:
    return jax.device_put(np.asarray(value, leaf.dtype), leaf.sharding)
