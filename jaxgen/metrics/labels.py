"""Label accuracy on the shapes: does a picture drawn for a label show its colour and shape? Read from pixels.

A label of the shapes is the colour and shape of a picture's first object. For data of single objects a
picture is right where it shows one object and no other, of that colour and that shape. The reading is
alignment's; what is not square is first made so, in the colour of its background.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxgen.config import Count
from jaxgen.data.shapes_scene import LABEL_NAMES
from jaxgen.metrics.alignment import read


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels to draw pictures for, all of them in turn, and the judge of those pictures."""

    prompts: int

    def examples(self) -> list[dict[str, Any]]:
        """The labels as examples without a picture."""
        return [
            {'label': index % len(LABEL_NAMES), 'caption': LABEL_NAMES[index % len(LABEL_NAMES)]}
            for index in range(self.prompts)
        ]

    def judge(self, image: np.ndarray, example: Mapping[str, Any]) -> bool:
        """Whether the picture shows one object, and that the label's."""
        return compare(image, example['label'])['label'] == 1.0

    def score(self, images: np.ndarray, examples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The part of pictures [N, H, W, 3] judged right ('label'), and with each part of it right."""
        if len(images) != len(examples) or not len(examples):
            raise ValueError(f'{len(images)} pictures for {len(examples)} examples; give one for each')
        rates = [compare(image, example['label']) for image, example in zip(images, examples, strict=True)]
        return {name: float(np.mean([rate[name] for rate in rates])) for name in rates[0]}


def compare(image: np.ndarray, label: int) -> dict[str, float]:
    """Which parts of a label a picture has right: the likest of its objects, and that it is alone."""
    colour, shape = LABEL_NAMES[label].split()
    reading = read(_squared(image))
    right = [(found['colour'] == colour, found['shape'] == shape) for found in reading.objects]
    best = max(right, key=sum, default=(False, False))
    rates = {'colour': float(best[0]), 'shape': float(best[1]), 'count': float(len(right) == 1)}
    return rates | {'label': float(min(rates.values()) == 1.0)}


def _squared(image_HWC: np.ndarray) -> np.ndarray:
    """The picture, below and to the right of it the colour that most of it has."""
    side = max(image_HWC.shape[:2])
    square = np.empty((side, side, 3), np.uint8)
    square[:] = np.median(image_HWC, axis=(0, 1))
    square[: image_HWC.shape[0], : image_HWC.shape[1]] = image_HWC
    return square


def build(prompts: Count = 256, data_name: str = 'shapes') -> Labels:
    """The metric with so many `prompts`, labels in turn."""
    if data_name != 'shapes':
        raise ValueError(f"labels judges pictures of the data 'shapes', not of '{data_name}'; leave it out.")
    return Labels(prompts)
