"""How many tokens are hidden: masking schedules, concave to convex (MaskGIT, Chang et al., 2202.04200).

A schedule takes progress from 0, where all tokens are hidden, to 1, where none is. In training progress is
drawn, in sampling it is the share of steps done. 'arccos' is that of Halton-MaskGIT and MaskBit.
"""

import math
from typing import Literal

import jax.numpy as jnp
from jax import Array

Name = Literal['cosine', 'arccos', 'power', 'logarithm', 'exponential']


def hidden(name: Name, progress: Array, tokens: Array | int, exponent: Array | float = 1.0) -> Array:
    """The share of `tokens` that is hidden; `exponent` is that of 'power': 1 is linear, 2 the square."""
    progress = jnp.asarray(progress, jnp.float32)
    doublings = jnp.log2(jnp.maximum(jnp.asarray(tokens, jnp.float32), 2))
    if name == 'cosine':
        share = jnp.cos(math.pi / 2 * progress)
    elif name == 'arccos':
        share = jnp.arccos(jnp.minimum(progress, 1)) / (math.pi / 2)
    elif name == 'power':
        share = 1 - progress**exponent
    elif name == 'logarithm':
        share = -jnp.log2(progress) / doublings
    else:
        share = 1 - 2 ** (-doublings * (1 - progress))
    return jnp.clip(share, 0, 1)
