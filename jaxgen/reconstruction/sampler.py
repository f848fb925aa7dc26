"""The condition's pictures to the tokenizer's latents and, where it has codes, through these."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax import Array

from jaxgen import keys as random
from jaxgen.conditioning.request import Request


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A sampler that draws nothing of its own; it has no knobs."""

    tokenizer: Any
    draws = ()  # no network does

    def knobs(self, **changes: float) -> dict[str, Array]:
        """None."""
        if changes:
            raise ValueError(f"a reconstruction has no knobs, and '{min(changes)}' is given; leave it out.")
        return {}

    def at(self, shape: tuple[int, ...]) -> 'Reconstruction':
        """The same for latents of another shape, which pictures of the recipe's size do not have."""
        if tuple(shape) != tuple(self.tokenizer.latent):
            raise ValueError('a picture is given back at its own size; leave --size out.')
        return self

    def sample(self, params: Mapping[str, Any], request: Request, knobs: Mapping[str, Array]) -> Array:
        """Latents as the decoder takes them."""
        known = {'image': request.cond['picture']}
        latents = self.tokenizer.encode(params, known, random.fold(request.keys, 'encode'))
        if 'codes' not in getattr(self.tokenizer, 'provides', {}):
            return latents
        return self.tokenizer.embed(params, self.tokenizer.quantize(params, latents))


def build(tokenizer: Any, conditioner: Any) -> Reconstruction:
    """The sampler of the recipe's tokenizer."""
    if conditioner.reads != 'picture':
        raise ValueError(
            "sampler 'reconstruction' is of given pictures; it wants conditioner.name='pictures'."
        )
    return Reconstruction(tokenizer)
