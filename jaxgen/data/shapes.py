"""Captioned pictures of coloured shapes: the library's own data set, for runs that need no download.

One to three shapes, each with a size, colour and place, on a background, and a caption that says it all.
The test split shows only combinations of colour, shape and place that training never shows, so that a
model is scored (jaxgen.metrics.alignment) on prompts it cannot have learnt by heart.
"""

import threading
from collections.abc import Sequence

import numpy as np

from jaxgen import images
from jaxgen.config import Count, Seed, Side, Size
from jaxgen.data.shapes_scene import LABEL_NAMES, PLACES
from jaxgen.data.source import Description, Example, check_resolution, check_split, default_data_dir

CACHE_BYTES = 256 * 2**20  # a split whose decoded pictures fit in this is kept in memory as it is read


class Shapes:
    """A split of a prepared data set, random access; what was read once stays decoded where it is small."""

    def __init__(self, records: Sequence[dict], resolution: int):
        self.records = records
        self.description = Description(resolution, len(LABEL_NAMES), True, LABEL_NAMES)
        shape = (len(records), resolution, resolution, 3)
        self._lock = threading.Lock()
        self._kept: dict[int, Example] = {}
        self._pictures = np.empty(shape, np.uint8) if np.prod(shape) <= CACHE_BYTES else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        kept = self._kept.get(index)
        if kept is not None:
            return dict(kept)
        record = self.records[index]
        example = {
            'image': images.crop(images.decode(record['image']), self.description.resolution),
            'caption': record['caption'].decode(),
            'label': int(record['label']),
        }
        if self._pictures is not None:
            with self._lock:
                self._pictures[index] = example['image']
                example['image'] = self._pictures[index]
                example['image'].flags.writeable = False
                self._kept[index] = example
        return dict(example)


def build(
    split: str = 'train',
    resolution: Side = 32,
    examples: Count = 20_000,
    test_examples: Count = 2_000,
    objects: tuple[Size, Size] = (1, 3),
    seed: Seed = 0,
    data_dir: str | None = None,
) -> Shapes:
    """The split 'train' or 'test' of the shapes, drawn and written below `data_dir` where it is not yet.

    `objects` are the fewest and the most of a scene. A label is the first object's colour and shape.
    """
    check_split(split)
    check_resolution(resolution, least=16)
    low, high = objects
    if not 1 <= low <= high <= len(PLACES):
        raise ValueError(f'objects={tuple(objects)}; give the fewest and the most, within 1 to {len(PLACES)}')
    if min(examples, test_examples) < 1:
        raise ValueError(f'examples={examples} and test_examples={test_examples}; each must be 1 or more')
    from jaxgen.data import shapes_builder  # a third of a second, for what draws pictures and reads no data

    sizes = shapes_builder.Sizes(resolution, examples, test_examples, (low, high), seed)
    return Shapes(
        shapes_builder.records(default_data_dir() if data_dir is None else data_dir, sizes, split), resolution
    )
