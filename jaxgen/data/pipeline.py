"""Batches as a function of (seed, step), made by threads.

The global index of an example is step x batch + i: epochs are shuffled one after the other, batches run
over their ends, and each process takes its own rows of every batch. A resume is therefore exact at any
step, with any number of threads or processes, and needs no loader state but the step.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from jaxgen.data.source import Augmenting, Example, Mirroring, Source

Batch = dict[str, np.ndarray]
Arrays = Callable[[Sequence[Example]], Batch]

_PREFETCH = 2  # batches a thread may be ahead of the training step


def _reader(source: Source, train: bool, flip: bool) -> Callable[[int, np.random.Generator], Example]:
    augment = train and isinstance(source, Augmenting)
    turns = 'image' in source.description.arrays

    def read(index: int, rng: np.random.Generator) -> Example:
        # Drawn first, so that a source that draws more or less changes no flip.
        mirrored = train and flip and rng.random() < 0.5
        if mirrored and not turns:
            return source.mirrored(index)
        example = source.augmented(index, rng) if augment else source[index]
        return example | {'image': example['image'][:, ::-1]} if mirrored else example

    return read


class _Rows(grain.MapDataset):
    """Some rows of every batch, one batch after the other."""

    def __init__(self, parent: grain.MapDataset, rows: Sequence[int], batch: int):
        super().__init__(parent)
        self._rows, self._batch = rows, batch

    def __len__(self) -> int:
        return len(self._parent) // self._batch * len(self._rows)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        step, row = divmod(index, len(self._rows))
        return self._parent[step * self._batch + self._rows[row]]


def _collate(stacked: Sequence[str], arrays: Arrays | None) -> Callable[[Sequence[Example]], Batch]:
    def collate(examples: Sequence[Example]) -> Batch:
        # np.stack copies: the device may alias a batch's memory, so that no batch may share any.
        batch = {name: np.stack([example[name] for example in examples]) for name in stacked}
        more = {} if arrays is None else arrays(examples)
        if twice := batch.keys() & more.keys():
            raise ValueError(
                f"the arrays hold '{min(twice)}', which the source has already; name them otherwise"
            )
        return batch | more

    return collate


def batches(
    source: Source,
    arrays: Arrays | None = None,
    *,
    seed: int,
    batch: int,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
    train: bool = True,
    flip: bool = False,
    threads: int = 4,
) -> Iterator[Batch]:
    """Endless batches of this process from `start_step` on: the source's arrays and the `arrays` given.

    `batch` is the global size, `rows` are those of it that this process reads (None: all). With `train=False`
    the examples come in their order, neither shuffled nor flipped, again from the first after the last.
    `threads=0` reads in the calling thread.
    """
    if len(source) == 0:
        raise ValueError('the source holds no examples; check its path and split')
    if batch < 1:
        raise ValueError(f'a batch of {batch}; give one example or more')
    rows = list(range(batch)) if rows is None else [int(row) for row in rows]
    if not rows or not 0 <= min(rows) <= max(rows) < batch:
        raise ValueError(f'the rows {rows} of a batch of {batch}; give some of 0 to {batch - 1}')
    if start_step < 0 or threads < 0:
        raise ValueError(f'start_step={start_step} and threads={threads}; neither may be negative')
    stacked = source.description.arrays
    if flip and 'image' not in stacked and not isinstance(source, Mirroring):
        raise ValueError(
            f'the data holds {", ".join(stacked)} and no picture to mirror; set train.flip=False'
        )
    dataset = grain.MapDataset.range(len(source)).seed(seed)
    if train:
        dataset = dataset.shuffle()
    dataset = dataset.repeat().random_map(_reader(source, train, flip))
    dataset = _Rows(dataset, rows, batch).batch(len(rows), batch_fn=_collate(stacked, arrays))[start_step:]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads * _PREFETCH)
    return iter(dataset.to_iter_dataset(options))
