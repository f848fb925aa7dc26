"""Class labels: the host half reads the number, the network owns the table and its null row."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax import Array

from jaxgen.config import Count


@dataclasses.dataclass(frozen=True)
class Labels:
    """The conditioner of class-conditional networks."""

    classes: int
    names: tuple[str, ...] = ()
    trains: tuple[str, ...] = ()
    holds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    nothing: None = None
    reads: str = 'label'

    @property
    def provides(self) -> dict[str, Any]:
        """What a network's build may ask for by name."""
        return {'classes': self.classes}

    def init(self, key: Array, arrays: Mapping[str, Array]) -> dict[str, Any]:
        """Labels have no network of their own."""
        return {}

    def arrays(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """{'label': int32 [B]}; a label out of range is refused, as an embedding would not notice."""
        labels = np.asarray([example['label'] for example in examples], np.int32)
        wrong = labels[(labels < 0) | (labels >= self.classes)]
        if wrong.size:
            raise ValueError(f'label {wrong[0]} does not exist; there are {self.classes} classes, from 0.')
        return {'label': labels}

    def embed(self, params: Mapping[str, Any], arrays: Mapping[str, Array], drop: Array, keys: Array) -> dict:
        """The condition: labels and which of them are left out."""
        return {'label': arrays['label'], 'drop': drop}

    def describe(self, example: Mapping[str, Any]) -> str:
        """A caption for pictures and records."""
        label = int(example['label'])
        return self.names[label] if self.names else f'class {label}'

    def example(self, prompt: str) -> dict[str, Any]:
        """The example that a prompt from the command line stands for: a class's number, or its name."""
        asked = prompt.strip()
        if asked in self.names:
            return {'label': self.names.index(asked)}
        if not (asked.isdecimal() and int(asked) < self.classes):
            named = f", or their names, such as '{self.names[-1]}'" if self.names else ''
            raise ValueError(
                f"'{prompt[:40]}' is no label; this recipe is conditioned on class numbers, from 0 to "
                f'{self.classes - 1}{named}.'
            )
        return {'label': int(asked)}


def build(classes: Count, label_names: tuple[str, ...] | None = None) -> Labels:
    """The conditioner for the data's classes."""
    return Labels(classes, label_names or ())
