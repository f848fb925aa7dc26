"""In what order tokens are decoded, one way a file, each with `build() -> Order`."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
from jax import Array

from jaxgen.conditioning.request import Request

Knobs = Mapping[str, Array]


class Order(Protocol):
    """A walk over tokens; `knobs` are the settings of its own that stay traced, with their defaults."""

    knobs: Mapping[str, float]

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
    return jax.tree.map(lambda a, b: jax.numpy.concatenate([a, b]), one, other)
