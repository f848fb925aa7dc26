"""What training carries from step to step; the step's number is the loop's own."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
    """Trees by name: `params` and `ema` by network, `optimizer` by phase, `state` the objective's own.

    `profiles` are the averages of further widths (by width, then network), `progress` the guard's counts.
    """

    params: Any
    optimizer: Any
    ema: Any
    state: Any
    profiles: Any
    progress: Any

    def trees(self) -> dict[str, Any]:
        """The state as a plain dictionary, as checkpoints hold it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def kept_in(dtype: str | None, tree: Any) -> Any:
    """Parameters in the dtype that they are kept in."""
    if dtype is None:
        return tree
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )
