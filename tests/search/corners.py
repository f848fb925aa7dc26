"""Data for reflow: one shape whose place no condition says, so that a flow has to choose, and bends.

Labels are a colour and a shape; `judge` is a metric of jaxgen.metrics.alignment in which any place is right.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxgen.data import shapes_draw, shapes_scene
from jaxgen.data.source import Description
from jaxgen.metrics import alignment

KINDS = (('red', 'circle'), ('red', 'cross'), ('yellow', 'circle'), ('yellow', 'cross'))
PLACES = tuple(shapes_scene.PLACES)


def scene(label: int, place: str) -> shapes_scene.Scene:
    """A large shape on black."""
    colour, shape = KINDS[label]
    return shapes_scene.Scene('black', (shapes_scene.Object('large', colour, shape, place),))


@dataclasses.dataclass(frozen=True)
class Corners:
    """Every kind at every place, each drawn a little differently."""

    description: Description
    pictures: np.ndarray

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {'image': self.pictures[index], 'label': index % len(KINDS)}


def build(split: str = 'train', resolution: int = 16, examples: int = 1440) -> Corners:
    """The source."""
    rng = np.random.default_rng(int(split == 'test'))
    scenes = (scene(i % len(KINDS), PLACES[i // len(KINDS) % len(PLACES)]) for i in range(examples))
    pictures = np.stack([shapes_draw.render(one, resolution, rng) for one in scenes])
    return Corners(Description(resolution, len(KINDS)), pictures)


@dataclasses.dataclass(frozen=True)
class AnyPlace:
    """Whether a picture shows its label's shape, somewhere, and nothing more."""

    prompts: int

    def examples(self) -> list[dict[str, Any]]:
        return [{'label': index % len(KINDS)} for index in range(self.prompts)]

    def judge(self, image: np.ndarray, example: dict[str, Any]) -> bool:
        reading = alignment.read(image)
        rates = (alignment.compare(reading, scene(example['label'], place)) for place in PLACES)
        return max(rate['alignment'] for rate in rates) == 1.0

    def score(self, images: np.ndarray, examples: list[dict[str, Any]]) -> dict[str, float]:
        return {'alignment': float(np.mean([self.judge(*pair) for pair in zip(images, examples)]))}


def judge(prompts: int = 128) -> AnyPlace:
    """The metric."""
    return AnyPlace(prompts)
