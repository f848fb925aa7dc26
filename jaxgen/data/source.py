"""What every source of examples offers, and nothing of how it does so.

An example is a dict with 'image' (uint8 [H, W, 3]) and, where the source has them, 'label' (int)
and 'caption' (str); `description.arrays` names what goes into batches as it is. Sources are random
access, so that data can be a function of (seed, step).
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Description:
    """What the other parts of a recipe must know of a source before they read from it."""

    resolution: int
    classes: int | None = None
    captions: bool = False
    label_names: tuple[str, ...] | None = None
    arrays: tuple[str, ...] = ('image',)
    latent: tuple[int, ...] | None = None  # the shape of what is stored already encoded
    encoding: Mapping[str, Any] | None = None  # what it was encoded by


class Source(Protocol):
    """A sequence of examples; reading the same index twice gives the same example."""

    @property
    def description(self) -> Description: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@runtime_checkable
class Augmenting(Protocol):
    """A source that also draws a random variant of an example (a random crop) for training."""

    def augmented(self, index: int, rng: np.random.Generator) -> Example: ...


@runtime_checkable
class Mirroring(Protocol):
    """A source that knows what becomes of an example's mirror image, where no picture is left to turn."""

    def mirrored(self, index: int) -> Example: ...


def check_split(split: str) -> None:
    """Refuses a split other than 'train' and 'test'."""
    if split not in ('train', 'test'):
        raise ValueError(f"split is {split!r}; choose 'train' or 'test'")


def check_resolution(resolution: int, least: int = 1) -> None:
    """Refuses a resolution that no picture can have."""
    if resolution < least:
        raise ValueError(f'resolution is {resolution}; give a number of pixels of {least} or more')


def default_data_dir() -> str:
    """Where data sets lie when nothing says otherwise: $JAXGEN_DATA_DIR, else ~/.cache/jaxgen."""
    return os.environ.get('JAXGEN_DATA_DIR') or os.path.join('~', '.cache', 'jaxgen')
