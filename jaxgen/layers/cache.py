"""Keys and values of the tokens before, in arrays as long as all tokens: every call has the same shapes."""

# B batch, M tokens, H heads, K width of a head

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.lax import dynamic_update_slice_in_dim

from jaxgen.layers.segment import expose

Cache = dict[str, jax.Array]
SITES = {name: f'*.attention/{name}' for name in ('key', 'value')}  # where layers expose them


def room(depth: int, batch: int, tokens: int, heads: int, width: int, dtype: Any) -> Cache:
    """For so many tokens of every layer."""
    shape = (depth, batch, tokens, heads, width // heads)
    return {name: jnp.zeros(shape, dtype) for name in SITES}


def among(
    module: nn.Module, k_BMHK: jax.Array, v_BMHK: jax.Array, held: jax.Array | None, cache: Any
) -> tuple[jax.Array, jax.Array]:
    """A layer's keys and values among those `held` before them, where there are such; the new are exposed."""
    expose(module, 'key', k_BMHK)
    expose(module, 'value', v_BMHK)
    if held is None:
        return k_BMHK, v_BMHK
    k, v = (
        dynamic_update_slice_in_dim(cache[name], new, held, axis=1)
        for name, new in (('key', k_BMHK), ('value', v_BMHK))
    )
    return k, v


def kept(cache: Mapping[str, jax.Array], features: dict[str, jax.Array], held: Any) -> Cache:
    """The cache with what all layers have exposed, which is taken out of the features."""
    return {
        name: dynamic_update_slice_in_dim(cache[name], features.pop(site), held, axis=2)
        for name, site in SITES.items()
    }
