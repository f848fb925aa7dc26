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
from jax.ad_checkpoint import checkpoint_name

from jaxgen.layers.linear import Linear
from jaxgen.layers.segment import exchange


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


def modulation(linear: Linear, c_BD: jax.Array, parts: int) -> list[jax.Array]:
    """So many shifts, scales and gates [B, 1, D] from the condition, as `condition` leaves it."""
    # Split after the product: a kernel's shards would not fit into such parts.
    return jnp.split(exchange(linear(c_BD)[:, None]), parts, axis=-1)


def condition(c_BD: jax.Array, dtype: Any) -> jax.Array:
    """What modulations are linear in, made once for all layers."""
    return jax.nn.silu(c_BD).astype(dtype)


def residual(x_BLD: jax.Array, branch_BLD: jax.Array, gate_B1D: jax.Array | None = None) -> jax.Array:
    """x + gate branch, the branch bearing a name by which it is kept for the backward pass.

    The gate's gradient and the next norm want it, and its last matmul would be run a second time for them.
    """
    branch_BLD = checkpoint_name(branch_BLD, 'branch')
    return x_BLD + (branch_BLD if gate_B1D is None else gate_B1D.astype(x_BLD.dtype) * branch_BLD)
