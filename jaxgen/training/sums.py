"""Metrics between two lines of the record: pairs of (sum, weight) by name, added up on the devices."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def add(sums: Mapping[str, Any], phase: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The sums with a step's metrics of a phase."""
    named = {f'{phase}/{name}': pair for name, pair in metrics.items()}
    return {
        **sums,
        **{
            name: jax.tree.map(lambda a, b: a + b, sums[name], pair) if name in sums else pair
            for name, pair in named.items()
        },
    }


def means(sums: Mapping[str, Any]) -> dict[str, Any]:
    """What they come to, numbers and arrays; what has no weight is left out."""
    fetched = jax.device_get(sums)
    found = {name: total / weight for name, (total, weight) in fetched.items() if weight > 0}
    return {name: mean if np.ndim(mean) else float(mean) for name, mean in found.items()}
