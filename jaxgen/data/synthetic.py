"""Seeded noise of declared shapes, so that any config can be planned, compiled and timed without its data."""

import dataclasses

import numpy as np

from jaxgen.config import Count, Seed, Side
from jaxgen.data.source import Description, Example, check_resolution, check_split

WORDS = ('a', 'painting', 'of', 'the', 'sea', 'with', 'two', 'ships', 'under', 'clouds', 'at', 'night')
_LONGEST = 24  # words of a caption


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """Examples made where they are read, each from (seed, index)."""

    description: Description
    examples: int
    key: tuple[int, int]  # the seed and the split

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.examples:
            raise IndexError(f'example {index} of {self.examples}')
        rng = np.random.default_rng((*self.key, index))
        side = self.description.resolution
        example: Example = {'image': rng.integers(0, 256, (side, side, 3), np.uint8)}
        if self.description.classes is not None:
            example['label'] = int(rng.integers(self.description.classes))
        if self.description.captions:
            example['caption'] = ' '.join(rng.choice(WORDS, rng.integers(1, _LONGEST + 1)))
        return example


def build(
    split: str = 'train',
    resolution: Side = 256,
    classes: Count | None = 1000,
    captions: bool = True,
    examples: Count = 10_000,
    seed: Seed = 0,
) -> Synthetic:
    """`examples` noise pictures, with labels where `classes` is a number and with words for captions."""
    check_split(split)
    check_resolution(resolution)
    if examples < 1 or (classes is not None and classes < 1):
        raise ValueError(f'examples={examples} and classes={classes}; each must be 1 or more')
    return Synthetic(Description(resolution, classes, captions), examples, (seed, int(split == 'test')))
