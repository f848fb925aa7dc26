"""The pairs that a first flow drew, as a source: noise, the latents it became, and their condition.

Made by `--mode=search` with search.name='pairs', read from the disk as they are asked for.
"""

import dataclasses
from typing import Any

import numpy as np
from etils import epath

from jaxgen import artifact
from jaxgen.config import Part
from jaxgen.data.source import Description, Example, check_split

KIND = 'pairs'


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Rows of an artifact; an example has 'noise' and 'latents' and no image."""

    description: Description
    arrays: dict[str, Any]
    rows: range

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.rows[index]
        example: Example = {name: self.arrays[name][row] for name in self.description.arrays}
        if self.description.classes is not None:
            example['label'] = int(self.arrays['label'][row])
        if self.description.captions:
            example['caption'] = self.arrays['caption'][row].item().decode()
        return example


def build(path: str, split: str = 'train', resolution: int = 32, holdout: Part = 0.02) -> Pairs:
    """The pairs of the artifact at `path`; its last `holdout` of them are the split 'test'."""
    check_split(split)
    found = artifact.load(epath.Path(path), KIND, {'resolution': resolution})
    about, count = found.found_for, len(found.arrays['noise'])
    first = count - int(np.ceil(holdout * count))
    rows = range(first) if split == 'train' else range(first, count)
    if not rows:
        raise ValueError(f"{path} has {count} pairs, none of them for '{split}' with holdout={holdout}")
    description = Description(
        resolution,
        about['classes'],
        about['captions'],
        about['label_names'] and tuple(about['label_names']),
        ('noise', 'latents'),
        tuple(about['latent']),
    )
    return Pairs(description, dict(found.arrays), rows)
