"""In what order tokens are decoded, one way a file, each with `build() -> Order`."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.conditioning.request import Request
from jaxgen.layers.resize import resize

Knobs = Mapping[str, Array]
# Scales of so few tokens stay as they are wherever a mask is given, as VAR's authors have it.
FEW = 3


class Order(Protocol):
    """A walk over tokens; `knobs` are the settings of its own that stay traced, with their defaults.

    `whole` names those of them that count, `others` the networks that draw besides 'model'.
    """

    knobs: Mapping[str, float]
    whole: tuple[str, ...]
    others: tuple[str, ...]

    def fits(self, network: Any, tokenizer: Any) -> None:
        """Refuse a network that goes another way, and a tokenizer whose tokens this order cannot decode."""

    def at(self, scales: tuple[tuple[int, int], ...]) -> 'Order':
        """The same for tokens of other scales."""

    def check(self, knobs: Mapping[str, float]) -> None:
        """Refuse knobs that make no sense."""

    def held(self, network: Any, tokenizer: Any, batch: int) -> Any:
        """The shapes of what is kept from token to token, for so many images."""

    def decode(
        self, network: Any, tokenizer: Any, params: Mapping[str, Any], request: Request, knobs: Knobs
    ) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
        """Latents, and by turns the codes chosen and the logits that they were chosen by."""


def twice(one: Any, other: Any) -> Any:
    """Two trees of arrays as one batch."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, other)


def kept(scales: tuple[tuple[int, int], ...], mask: Array | None) -> list[Array]:
    """By scale which tokens [B or 1, L] a mask keeps, which is 1 where to paint; without one it is none."""
    if mask is None:
        return [jnp.zeros((1, math.prod(scale)), bool) for scale in scales]
    under = [resize(1 - mask, scale, 'bilinear').reshape(len(mask), -1) > 0.5 for scale in scales]
    return [keep | (keep.shape[1] <= FEW) for keep in under]
