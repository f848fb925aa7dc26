"""Pictures as the condition: what is drawn is an answer to one, such as its reconstruction by a tokenizer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax import Array

from jaxgen import images
from jaxgen.config import Size


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The conditioner; a prompt is the path of a picture."""

    resolution: int
    trains: tuple[str, ...] = ()
    holds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    nothing: None = None
    reads: str = 'picture'

    @property
    def provides(self) -> dict[str, Any]:
        """What a network's build may ask for by name."""
        return {}

    def init(self, key: Array, arrays: Mapping[str, Array]) -> dict[str, Any]:
        """Pictures have no network of their own."""
        return {}

    def arrays(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """{'picture': uint8 [B, H, W, 3]}."""
        return {'picture': np.stack([example['image'] for example in examples])}

    def embed(self, params: Mapping[str, Any], arrays: Mapping[str, Array], drop: Array, keys: Array) -> dict:
        """The condition: pictures and which of them are left out."""
        return {'picture': arrays['picture'], 'drop': drop}

    def describe(self, example: Mapping[str, Any]) -> str:
        """A caption for pictures and records."""
        return str(example.get('path') or example.get('caption') or '')

    def shown(self, example: Mapping[str, Any]) -> np.ndarray:
        """What is to be seen beside the answer."""
        return example['image']

    def example(self, prompt: str) -> dict[str, Any]:
        """The example that a prompt from the command line stands for: a picture by its path."""
        return {'image': images.read(prompt, self.resolution), 'path': prompt}


def build(resolution: Size) -> Pictures:
    """The conditioner for the data's resolution."""
    return Pictures(resolution)
