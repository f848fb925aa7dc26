"""Batches as a function of (seed, step), made by threads.

The global index of an example is step x batch + i: epochs are shuffled one after the other, batches run
over their ends, and process p of P takes the p-th slice of every batch. A resume is therefore exact
at any step, with any number of threads or processes, and needs no loader state but the step.
"""

from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from jaxgen.data.source import Augmenting, Example, Source

Batch = dict[str, np.ndarray]
Arrays = Callable[[Sequence[Example]], Batch]

_PREFETCH = 2  # batches a thread may be ahead of the training step


def _reader(source: Source, train: bool, flip: bool) -> Callable[[int, np.random.Generator], Example]:
    augment = train and isinstance(source, Augmenting)

    def read(index: int, rng: np.random.Generator) -> Example:
        # Drawn first, so that a source that draws more or less changes no flip.
        mirrored = train and flip and rng.random() < 0.5
        example = source.augmented(index, rng) if augment else source[index]
        return example | {'image': example['image'][:, ::-1]} if mirrored else example

    return read


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
    process: int = 0,
    processes: int = 1,
    train: bool = True,
    flip: bool = False,
    threads: int = 4,
) -> Iterator[Batch]:
    """Endless batches of this process from `start_step` on: the source's arrays and the `arrays` given.

    `batch` is the global size. With `train=False` the examples come in their order, neither shuffled nor
    flipped, again from the first after the last. `threads=0` reads in the calling thread.
    """
    if len(source) == 0:
        raise ValueError('the source holds no examples; check its path and split')
    if batch < 1 or batch % processes:
        raise ValueError(f'a batch of {batch} for {processes} processes; give a multiple of {processes}')
    if not 0 <= process < processes:
        raise ValueError(f'process {process} of {processes}; count processes from 0')
    if start_step < 0 or threads < 0:
        raise ValueError(f'start_step={start_step} and threads={threads}; neither may be negative')
    stacked = source.description.arrays
    if flip and 'image' not in stacked:
        raise ValueError(
            f'the data holds {", ".join(stacked)} and no picture to mirror; set train.flip=False'
        )
    local = batch // processes
    dataset = grain.MapDataset.range(len(source)).seed(seed)
    if train:
        dataset = dataset.shuffle()
    dataset = dataset.repeat().random_map(_reader(source, train, flip))
    # Slices of `local` examples: the step's slice of process p is number step * processes + p.
    dataset = dataset.batch(local, batch_fn=_collate(stacked, arrays))[
        start_step * processes + process :: processes
    ]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads * _PREFETCH)
    return iter(dataset.to_iter_dataset(options))
