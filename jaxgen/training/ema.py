"""The exponential moving average of parameters that diffusion models are sampled from.

Ho et al. 2020 (arXiv:2006.11239) and DiT (Peebles & Xie 2022, arXiv:2212.09748) average with decay 0.9999.
With a warm-up the decay starts low and grows as (1 + step) / (10 + step), so that a short run's average is
not its random initial values. The average is float32 whatever the parameters are.
"""

from typing import Any

import jax
import jax.numpy as jnp


def init(params: Any) -> Any:
    """The average before the first step: float32 copies with buffers of their own, safe to donate."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, _average_dtype(leaf), copy=True), params)


def decay_at(step: int | jax.Array, decay: float = 0.9999, warmup: bool = True) -> jax.Array:
    """The decay used by the update of a step, counted from 0."""
    step = jnp.asarray(step, jnp.float32)
    if not warmup:
        return jnp.asarray(decay, jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def update(ema: Any, params: Any, step: int | jax.Array, decay: float = 0.9999, warmup: bool = True) -> Any:
    """decay * ema + (1 - decay) * params; leaves that are not real numbers are taken from the parameters."""
    rate = 1.0 - decay_at(step, decay, warmup)

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return old + rate * (new.astype(jnp.float32) - old)

    return jax.tree.map(average, ema, params)


def _average_dtype(leaf: Any) -> Any:
    return jnp.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
