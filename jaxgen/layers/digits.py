"""A large vocabulary as several small ones: a code is a number, and a token one of its digits.

So 2^18 codes are two tokens of 512, and no softmax is over more (the factorised tokens of MAGVIT-v2, Yu et
al., 2310.05737, and MaskBit, Weber et al., 2409.16211). Of a code of bits a digit is a group of bits, of one
of levels a group of channels where the levels are alike. The lowest digit comes first.
"""

# B batch, N codes, G digits of a code

import jax.numpy as jnp
import numpy as np
from jax import Array


def base(codes: int, groups: int) -> int:
    """How many digits there are to choose from where `groups` of them make up one of so many codes."""
    found = round(codes ** (1 / groups))
    if found**groups != codes:
        raise ValueError(
            f'{codes:,} codes are no {groups} equal groups; their number must be the {groups}th power of '
            'another.'
        )
    return found


def split(codes_BN: Array, codes: int, groups: int) -> Array:
    """The digits [B, N x G] of codes, those of one side by side."""
    if groups == 1:
        return codes_BN
    digits = codes_BN[..., None] // _places(codes, groups) % base(codes, groups)
    return digits.reshape(len(codes_BN), -1).astype(jnp.int32)


def joined(digits_BM: Array, codes: int, groups: int) -> Array:
    """The codes [B, N] of such digits."""
    if groups == 1:
        return digits_BM
    digits = digits_BM.reshape(len(digits_BM), -1, groups)
    return jnp.sum(digits * _places(codes, groups), -1).astype(jnp.int32)


def _places(codes: int, groups: int) -> np.ndarray:
    return (base(codes, groups) ** np.arange(groups)).astype(np.int32)
