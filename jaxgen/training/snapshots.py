"""The averages of a run as they were at its checkpoints, and from them the average of any width.

Post-hoc reconstruction of EDM2 (Karras et al. 2023, arXiv:2312.02696): how long to average is found after
training, by sampling, instead of before it. A snapshot holds the tracked averages and nothing else, and none
is ever deleted; one is a share of a checkpoint.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from jaxgen.training import ema
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.state import TrainState


def store(folder: epath.Path, step: int, state: TrainState) -> None:
    """Adds the averages of a step; a resumed run finds those that it passes again already there."""
    with Checkpoints(folder, keep_period=1) as kept:
        if step not in kept.steps():
            kept.save(step, _averages(state.ema, state.profiles, state.progress['averaged']))


def reconstruct(
    folder: epath.Path, averages: ema.Ema, abstract: Mapping[str, Any], step: int, width: float
) -> dict[str, Any]:
    """The averages of networks, by name, as if that width had been tracked up to a step."""
    averages.check_chosen(width)
    with Checkpoints(folder, read_only=True) as kept:
        steps = [taken for taken in kept.steps() if taken <= step]
        if step not in steps:
            raise ValueError(f'{folder} holds no snapshot of step {step}; it has {kept.steps()}.')
        return {name: _one(kept, steps, averages, name, tree, width) for name, tree in abstract.items()}


def _one(
    kept: Checkpoints, steps: list[int], averages: ema.Ema, name: str, abstract: Any, width: float
) -> Any:
    labels = dict(zip((None, *averages.further), averages.widths))
    whole = NamedSharding(jax.tree.leaves(abstract)[0].sharding.mesh, PartitionSpec())
    counter = {'averaged': {name: jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)}}
    times = {step: int(kept.restore(step, counter, partial=True)['averaged'][name]) for step in steps}
    chosen = [(step, label) for step in steps for label in labels if times[step]]

    def tree(step: int, label: str | None) -> Any:
        like = _averages({name: abstract}, {}) if label is None else _averages({}, {label: {name: abstract}})
        trees = kept.restore(step, like, partial=True)
        return (trees['ema'] if label is None else trees['profiles'][label])[name]

    weights = ema.coefficients(
        [times[step] for step, _ in chosen],
        [labels[label] for _, label in chosen],
        times[steps[-1]],
        width,
    )
    return ema.reconstruct((tree(*one) for one in chosen), weights)


def _averages(first: Mapping, further: Mapping, counts: Mapping | None = None) -> dict[str, Any]:
    trees = {'ema': first, 'profiles': further, 'averaged': counts or {}}
    return {name: tree for name, tree in trees.items() if tree}
