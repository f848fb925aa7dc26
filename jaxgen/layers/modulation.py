"""Normalisation and its adaptive modulation.

adaLN (Peebles & Xie, "Scalable Diffusion Models with Transformers", 2212.09748) shifts and scales a
normalised activation by vectors computed from the condition. Statistics are always float32 and two-pass: the
one-pass variance loses two digits on offset inputs.
"""

# B batch, L tokens, D width

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def layer_norm(
    *, affine: bool, epsilon: float = 1e-6, dtype: Any = jnp.float32, name: str | None = None
) -> nn.LayerNorm:
    """Layer norm over the last axis, with float32 statistics; `dtype` is that of the result."""
    return nn.LayerNorm(
        epsilon=epsilon, use_bias=affine, use_scale=affine, use_fast_variance=False, dtype=dtype, name=name
    )


def rms_norm(*, epsilon: float = 1e-6, dtype: Any = jnp.float32, name: str | None = None) -> nn.RMSNorm:
    """Root-mean-square norm over the last axis with a learned scale and float32 statistics."""
    return nn.RMSNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


def modulate(x_BLD: jax.Array, shift_B1D: jax.Array, scale_B1D: jax.Array) -> jax.Array:
    """x (1 + scale) + shift."""
    return x_BLD * (1 + scale_B1D) + shift_B1D
