"""What a token is, so that orders and objectives need not know: one of a tokenizer's codes, or a vector.

Tokens of all scales are one sequence, coarse to fine and in reading order inside a scale; one scale is the
ordinary case. A network gives for each what its alphabet reads a likelihood from: of codes, logits.
"""

# B batch, N tokens of all scales, L of some, V codes

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.autoregressive import choose
from jaxgen.autoregressive.vectors import Vectors
from jaxgen.layers import digits
from jaxgen.tokenizers.bottlenecks import Sizes

Params = Mapping[str, Any]
Knobs = Mapping[str, Array]


class Alphabet(Protocol):
    """Tokens [B, N] of codes, or [B, N, C] of vectors; `scales` are their grids."""

    scales: tuple[tuple[int, int], ...]

    def tokens(self, params: Params, latents: Array) -> Array:
        """The tokens of latents."""

    def latents(self, params: Params, tokens: Array) -> Array:
        """What the tokenizer decodes, of all tokens."""

    def empty(self, batch: int) -> Array:
        """What stands for tokens before any is drawn."""

    def loss(self, out: Array, tokens: Array, smoothing: float = 0.0) -> Array:
        """The negative logarithm of the tokens' likelihood, in nats, [B, N]."""

    def drawn(self, out_of_both: Array, keys_B: Array, knobs: Knobs) -> tuple[Array, Array]:
        """Tokens drawn for each key, and the logarithm of how likely the network holds them, [B, L].

        `out_of_both` is the network's output with the condition, and then without, as one batch.
        """


@dataclasses.dataclass(frozen=True)
class Codes:
    """The codes of a tokenizer that has some; of a large vocabulary each is `groups` tokens side by side."""

    tokenizer: Any
    groups: int = 1

    @property
    def scales(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of codes, coarse to fine."""
        return self.tokenizer.scales

    def tokens(self, params: Params, latents: Array) -> Array:
        """The codes of latents, int32 [B, N]."""
        codes = jnp.concatenate(self.tokenizer.quantize(params, latents), axis=1).astype(jnp.int32)
        return digits.split(codes, self.tokenizer.vocabulary, self.groups)

    def latents(self, params: Params, tokens: Array) -> Array:
        """What codes of all scales make up."""
        ends = np.cumsum([rows * columns for rows, columns in self.scales])[:-1]
        codes = digits.joined(tokens, self.tokenizer.vocabulary, self.groups)
        return self.tokenizer.embed(params, tuple(jnp.split(codes, ends, axis=1)))

    def empty(self, batch: int) -> Array:
        """Zeros [B, N]."""
        count = self.groups * sum(rows * columns for rows, columns in self.scales)
        return jnp.zeros((batch, count), jnp.int32)

    def loss(self, out: Array, tokens: Array, smoothing: float = 0.0) -> Array:
        """Cross-entropy of logits."""
        return cross_entropy(out, tokens, smoothing)

    def drawn(self, out_of_both: Array, keys_B: Array, knobs: Knobs) -> tuple[Array, Array]:
        """Codes by guided logits; how likely they are is told before temperature and cuts."""
        guided = choose.guided(out_of_both, knobs['guidance'])
        logits = choose.likeliest(guided / knobs['temperature'], knobs['top_k'], knobs['top_p'])
        tokens = choose.drawn(logits, keys_B)
        return tokens, -cross_entropy(guided, tokens)


def of(tokenizer: Any, groups: int = 1) -> Alphabet:
    """The alphabet of a tokenizer, for a network that takes a code as so many tokens."""
    if 'codes' in getattr(tokenizer, 'provides', {}):
        return Codes(tokenizer, groups)
    return Vectors(tokenizer)


def between(tokenizer: Any, network: Any) -> Alphabet:
    """The alphabet of a tokenizer and of a network, which must both have codes or both none."""
    letters = of(tokenizer, getattr(network.module, 'groups', 1))
    if isinstance(letters, Vectors) and hasattr(network.module, 'codes'):
        raise ValueError(
            f'model {type(network.module).__name__} is of codes, and the tokenizer has none; take '
            "tokenizer.name='vqgan' with a bottleneck that has some, or model.name='givt'."
        )
    return letters


# The ways that networks go: by which attribute they say so, what they do, and one that does.
WAYS = {
    'causal': ('causal', True, 'see the tokens before one alone', 'llamagen'),
    'bidirectional': ('causal', False, 'are told which tokens are hidden', 'maskgit'),
    'scalewise': ('scalewise', True, 'predict one scale after another', 'var'),
}


def goes(network: Any, way: str, part: str) -> None:
    """Refuse a network that does not go the way that a part wants."""
    attribute, value, does, one = WAYS[way]
    if getattr(network.module, attribute, None) is not value:
        raise ValueError(
            f'{part} is of networks that {does}, and model {type(network.module).__name__} is none; take '
            f"model.name='{one}', or its own order and objective."
        )


def ascending(scales: Sizes, network: Any, latent: tuple[int, ...], part: str) -> None:
    """Refuse scales of a part that do not grow from what the network begins with to the latents' grid."""
    first, last = tuple(network.module.scales[0]), tuple(latent[:2])
    if scales[:1] != (first,):
        raise ValueError(f'{part} is {scales}; it must begin with {first}, as the network does.')
    for one, other in itertools.pairwise(scales):
        if one == other or any(after < before for before, after in zip(one, other)):
            raise ValueError(
                f'{part} is {scales}; each scale must be larger than the one before it, and {other} is none '
                f'after {one}.'
            )
    if scales[-1] != last:
        raise ValueError(f"{part} is {scales}; it must end with {last}, the latents' grid.")


def cross_entropy(logits_BNV: Array, codes_BN: Array, smoothing: float = 0.0) -> Array:
    """In nats, [B, N], against the codes and with a share of `smoothing` against all codes alike."""
    logs = jax.nn.log_softmax(logits_BNV.astype(jnp.float32), axis=-1)
    errors = -jnp.take_along_axis(logs, codes_BN[..., None], axis=-1)[..., 0]
    return (1 - smoothing) * errors - smoothing * logs.mean(-1) if smoothing else errors


def errors_by_scale(errors_BN: Array, counted_BN: Array, scales: Sizes) -> dict[str, tuple[Array, Array]]:
    """The mean error of what counts of each scale, as metrics; none of a single one."""
    if len(scales) == 1:
        return {}
    lengths = np.array([rows * columns for rows, columns in scales])
    ends = np.cumsum(lengths * (errors_BN.shape[1] // lengths.sum()))[:-1]
    parts = zip(
        scales, *(jnp.split(each, ends, axis=1) for each in (errors_BN * counted_BN, counted_BN)), strict=True
    )
    return {
        f'error_{rows}x{columns}': (errors.sum(), counted.sum()) for (rows, columns), errors, counted in parts
    }
