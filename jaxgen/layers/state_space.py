"""A state-space layer: Mamba-2, Dao & Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms
Through Structured State Space Duality", 2405.21060.

Every head keeps a matrix h that fades and is written to, h_l = exp(A dt_l) h_(l-1) + dt_l x_l B_l', and is
read as y_l = h_l C_l + D x_l; dt, x, B and C come from the token, the last three after a short causal
convolution. The sum is computed by chunks: inside one as attention whose scores fade with distance, from one
to the next through h, so that it costs as much a token however many there are. What goes on from some tokens
to those after them is h and the last inputs of the convolution.
"""

# B batch, L tokens, D width, H heads, P width of a head, N width of what is written and read, C channels
# G chunks, I and J tokens inside a chunk

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.layers.linear import Initializer, Linear, xavier
from jaxgen.layers.modulation import rms_norm
from jaxgen.layers.segment import expose

STEPS, RATES = (1e-3, 1e-1), (1.0, 16.0)  # between which dt and -A lie at first
TAPS = 4  # tokens that the convolution sees


def scan(
    x_BLHP: jax.Array,
    dt_BLH: jax.Array,
    a_H: jax.Array,
    b_BLN: jax.Array,
    c_BLN: jax.Array,
    state_BHPN: jax.Array,
    chunk: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """y without D x, and the state after the last token, from the state before the first; both float32."""
    batch, length, heads, width = x_BLHP.shape
    chunk = min(chunk, length)
    count = -(-length // chunk)

    def cut(array: jax.Array) -> jax.Array:
        # What fills the last chunk has dt = 0: it neither fades the state nor writes to it.
        filled = jnp.pad(array, ((0, 0), (0, count * chunk - length), *[(0, 0)] * (array.ndim - 2)))
        return filled.reshape(batch, count, chunk, *array.shape[2:])

    x_BGIHP, dt_BGIH, b_BGIN, c_BGIN = map(cut, (x_BLHP, dt_BLH.astype(jnp.float32), b_BLN, c_BLN))
    dtype, whole = x_BLHP.dtype, {'preferred_element_type': jnp.float32}
    faded_BGIH = jnp.cumsum(dt_BGIH * a_H, axis=2)
    end_BGH = faded_BGIH[:, :, -1]

    faded_BGHI = jnp.moveaxis(faded_BGIH, 2, 3)
    since_BGHIJ = faded_BGHI[..., :, None] - faded_BGHI[..., None, :]
    since_BGHIJ = jnp.where(jnp.tril(jnp.ones((chunk, chunk), bool)), since_BGHIJ, -jnp.inf)
    scores_BGIJ = jnp.einsum('bgin,bgjn->bgij', c_BGIN, b_BGIN, **whole)
    written_BGIHP = (x_BGIHP * dt_BGIH[..., None]).astype(dtype)
    weights_BGHIJ = (jnp.exp(since_BGHIJ) * scores_BGIJ[:, :, None]).astype(dtype)
    y_BGIHP = jnp.einsum('bghij,bgjhp->bgihp', weights_BGHIJ, written_BGIHP, **whole)

    left_BGIH = jnp.exp(end_BGH[:, :, None] - faded_BGIH)
    kept_BGIHP = (written_BGIHP * left_BGIH[..., None]).astype(dtype)
    added_GBHPN = jnp.einsum('bgihp,bgin->gbhpn', kept_BGIHP, b_BGIN, **whole)

    def pass_on(state_BHPN: jax.Array, one: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        fading_BH, added_BHPN = one
        return fading_BH[..., None, None] * state_BHPN + added_BHPN, state_BHPN

    fading_GBH = jnp.moveaxis(jnp.exp(end_BGH), 1, 0)
    state_BHPN, before_GBHPN = jax.lax.scan(
        pass_on, state_BHPN.astype(jnp.float32), (fading_GBH, added_GBHPN)
    )
    read_BGIHP = jnp.einsum('bgin,gbhpn->bgihp', c_BGIN, before_GBHPN.astype(dtype), **whole)
    y_BGIHP = y_BGIHP + read_BGIHP * jnp.exp(faded_BGIH)[..., None]
    return y_BGIHP.reshape(batch, count * chunk, heads, width)[:, :length], state_BHPN


class CausalConvolution(nn.Module):
    """Every channel over the last `TAPS` tokens, SiLU; and the last inputs, for tokens that follow."""

    kernel_init: Initializer

    @nn.compact
    def __call__(self, x_BLC: jax.Array, before_BTC: jax.Array) -> tuple[jax.Array, jax.Array]:
        length, channels = x_BLC.shape[1:]
        taps_TC = self.param('taps', self.kernel_init, (TAPS, channels)).astype(x_BLC.dtype)
        bias_C = self.param('bias', nn.initializers.zeros, (channels,)).astype(x_BLC.dtype)
        given_BLC = jnp.concatenate([before_BTC.astype(x_BLC.dtype), x_BLC], axis=1)
        y_BLC = sum(given_BLC[:, tap : tap + length] * taps_TC[tap] for tap in range(TAPS))
        return jax.nn.silu(y_BLC + bias_C), given_BLC[:, length:]


class StateSpace(nn.Module):
    """Mamba-2's layer, [B, L, D] -> [B, L, D].

    `memory` is {'state': [B, H, P, N], 'tail': [B, TAPS - 1, C]} of the tokens before, None where there are
    none; the same of all tokens so far are exposed under these names.
    """

    heads: int
    head_width: int
    state: int
    kernel_init: Initializer = xavier
    conv_init: Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x_BLD: jax.Array, memory: Any = None) -> jax.Array:
        heads, inner = (self.heads, self.head_width), self.heads * self.head_width
        bare = {'use_bias': False, 'kernel_init': self.kernel_init}
        gate_BLHP = Linear(heads, name='gate', **bare)(x_BLD)
        inputs = [
            Linear(features, name=name, **bare)(x_BLD)
            for name, features in (('value', inner), ('write', self.state), ('read', self.state))
        ]
        joined_BLC = jnp.concatenate(inputs, axis=-1)
        memory = memory or blank(len(x_BLD), *heads, self.state, x_BLD.dtype)
        joined_BLC, tail_BTC = CausalConvolution(self.conv_init, name='convolution')(
            joined_BLC, memory['tail']
        )
        x_BLC, b_BLN, c_BLN = jnp.split(joined_BLC, (inner, inner + self.state), axis=-1)
        x_BLHP = x_BLC.reshape(*x_BLC.shape[:2], *heads)

        dt_BLH = Linear(self.heads, name='step', **bare)(x_BLD).astype(jnp.float32)
        dt_BLH = jax.nn.softplus(dt_BLH + self.param('step_bias', _steps, (self.heads,)))
        # By its logarithm, which adds to that of dt.
        a_H = -jnp.exp(self.param('decay_bias', _rates, (self.heads,)).astype(jnp.float32))
        y_BLHP, state_BHPN = scan(x_BLHP, dt_BLH, a_H, b_BLN, c_BLN, memory['state'])
        expose(self, 'state', state_BHPN)
        expose(self, 'tail', tail_BTC)

        skip_H1 = self.param('skip_scale', nn.initializers.ones, (self.heads,))[:, None]
        y_BLHP = y_BLHP + skip_H1 * x_BLHP
        y_BLHP = y_BLHP * jax.nn.silu(gate_BLHP.astype(jnp.float32))
        y_BLC = rms_norm(epsilon=1e-5, name='norm')(y_BLHP.reshape(*y_BLHP.shape[:2], inner))
        y_BLC = y_BLC.astype(x_BLD.dtype)
        return Linear(x_BLD.shape[-1], name='out', **bare)(y_BLC)


def blank(batch: int, heads: int, head_width: int, state: int, dtype: Any) -> dict[str, jax.Array]:
    """The memory before the first token."""
    return {
        'state': jnp.zeros((batch, heads, head_width, state), jnp.float32),
        'tail': jnp.zeros((batch, TAPS - 1, heads * head_width + 2 * state), dtype),
    }


def _steps(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What softplus makes dt of, whose logarithm is uniform."""
    low, high = map(math.log, STEPS)
    return jnp.log(jnp.expm1(jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))))


def _rates(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Logarithms of uniform rates."""
    return jnp.log(jax.random.uniform(key, shape, minval=RATES[0], maxval=RATES[1]))
