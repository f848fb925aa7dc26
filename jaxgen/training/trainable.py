"""The part of the parameters that a phase trains: whole networks, or what patterns name of them.

Fine-tuning few parameters, as biases alone (BitFit, Ben Zaken et al. 2021, arXiv:2106.10199), biases, norms
and scales (DiffFit, Xie et al. 2023, arXiv:2304.06648) or low-rank factors (LoRA, arXiv:2106.09685), then has
gradients and optimizer state for these alone. What is left out is None in a tree, which is no leaf.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax

from jaxgen.training.sharding import path_string

Trainable = bool | tuple[str, ...]


def part(params: Mapping[str, Any], trainable: Mapping[str, Trainable]) -> dict[str, Any]:
    """Those networks, with None for every leaf whose path has none of the network's patterns."""
    return {name: _kept(name, params[name], patterns) for name, patterns in trainable.items()}


def merged(params: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with a part of them put in its place."""
    filled = {
        name: jax.tree.map(
            lambda new, old: old if new is None else new,
            tree,
            params[name],
            is_leaf=lambda leaf: leaf is None,
        )
        for name, tree in trained.items()
    }
    return {**params, **filled}


def _kept(network: str, tree: Any, patterns: Trainable) -> Any:
    if patterns is True:
        return tree
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise ValueError(f'networks.{network}.trainable has a pattern that is none: {error}.') from None

    def chosen(path: tuple, leaf: Any) -> Any:
        name = path_string(path)
        return leaf if any(pattern.search(name) for pattern in compiled) else None

    kept = jax.tree_util.tree_map_with_path(chosen, tree)
    if not jax.tree.leaves(kept):
        example = path_string(jax.tree_util.tree_flatten_with_path(tree)[0][0][0])
        raise ValueError(
            f'networks.{network}.trainable is {patterns}, which no parameter has in its path, such as '
            f"'{example}'; name some, or set it to False."
        )
    return kept
