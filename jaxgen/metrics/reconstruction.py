"""How well a tokenizer gives pictures back: PSNR and SSIM to the held-out pictures themselves."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen.config import Count
from jaxgen.objectives.fidelity import psnr, ssim

AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Held-out pictures, and the judge of what is made of them."""

    prompts: int
    source: Callable[[str], Any]

    def examples(self) -> list[Mapping[str, Any]]:
        """The first of the held-out pictures."""
        source = self.source('held_out')
        return [source[index] for index in range(min(self.prompts, len(source)))]

    def score(self, images: np.ndarray, examples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The means over pictures [N, H, W, 3]."""
        if len(images) != len(examples) or not len(examples):
            raise ValueError(f'{len(images)} pictures for {len(examples)} examples; give one for each')
        found: dict[str, list[np.ndarray]] = {'psnr': [], 'ssim': []}
        for first in range(0, len(images), AT_ONCE):
            made = jnp.asarray(images[first : first + AT_ONCE], jnp.float32) / 255
            asked = np.stack([example['image'] for example in examples[first : first + AT_ONCE]])
            original = jnp.asarray(asked, jnp.float32) / 255
            found['psnr'].append(np.asarray(psnr(made, original)))
            found['ssim'].append(np.asarray(ssim(made, original)))
        return {name: float(np.concatenate(parts).mean()) for name, parts in found.items()}


def build(source: Callable[[str], Any], prompts: Count = 256) -> Reconstruction:
    """The metric on so many held-out pictures."""
    return Reconstruction(prompts, source)
