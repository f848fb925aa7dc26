"""Batches are a function of (seed, step): whatever the start, the processes, the threads."""

import itertools

import numpy as np
import pytest

from jaxgen.data import pipeline, synthetic
from jaxgen.data.source import Description


def numbers(examples):
    return {'label': np.array([example['label'] for example in examples], np.int32)}


class Counting:
    """Pictures that hold their own index, to see which example was read."""

    def __init__(self, examples: int, side: int = 4):
        self.examples = examples
        self.description = Description(side, examples)

    def __len__(self):
        return self.examples

    def __getitem__(self, index):
        side = self.description.resolution
        row = np.arange(side, dtype=np.uint8) + 10 * index
        return {'image': np.broadcast_to(row[None, :, None], (side, side, 3)).copy(), 'label': index}


class Cropped(Counting):
    """A source with a random variant of its own: a number added to the picture."""

    def augmented(self, index, rng):
        example = self[index]
        return example | {'image': example['image'] + np.uint8(rng.integers(1, 200))}


def take(count, source=None, **options):
    source = Counting(10) if source is None else source
    made = pipeline.batches(source, numbers, **({'seed': 3, 'batch': 6} | options))
    return list(itertools.islice(made, count))


def same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def joined(parts):
    return [{k: np.concatenate([p[k] for p in part]) for k in part[0]} for part in zip(*parts, strict=True)]


@pytest.mark.parametrize('source', [Counting(10), Cropped(10)])
@pytest.mark.parametrize('start', [1, 4, 150])
def test_a_resume_continues_the_same_batches(source, start):
    same(take(3, source, flip=True, start_step=start), take(start + 3, source, flip=True)[start:])


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('split', [[[0, 1, 2], [3, 4, 5]], [[0, 3], [1, 4], [2, 5]]])
def test_rows_of_the_processes_make_one_process_s_batch(split, train):
    parts = [
        take(4, Cropped(10), flip=True, train=train, start_step=2, rows=np.array(rows)) for rows in split
    ]
    order = np.argsort(np.concatenate(split))
    whole = [{name: array[order] for name, array in one.items()} for one in joined(parts)]
    same(whole, take(4, Cropped(10), flip=True, train=train, start_step=2))


def test_threads_change_nothing():
    source = synthetic.build(resolution=8, classes=5, examples=50)
    alone = take(12, source, threads=0, flip=True)
    for threads in (1, 7):
        same(alone, take(12, source, threads=threads, flip=True))


def test_every_epoch_shows_every_example_once_in_another_order():
    labels = np.concatenate([batch['label'] for batch in take(10)]).reshape(6, 10)
    assert (np.sort(labels) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in labels}) == 6
    assert not (labels[0] == np.arange(10)).all()


def test_the_seed_decides_the_order():
    assert [tuple(b['label']) for b in take(3)] != [tuple(b['label']) for b in take(3, seed=4)]


def test_in_order_and_unchanged_for_evaluation():
    made = take(4, Cropped(10), train=False, flip=True)
    labels = np.concatenate([batch['label'] for batch in made])
    np.testing.assert_array_equal(labels, np.arange(24) % 10)
    for batch in made:
        for image, label in zip(batch['image'], batch['label'], strict=True):
            np.testing.assert_array_equal(image, Counting(10)[label]['image'])


def test_a_batch_may_exceed_a_small_folder():
    (batch,) = take(1, Counting(3), batch=12)
    np.testing.assert_array_equal(np.sort(batch['label']), np.repeat(np.arange(3), 4))


def test_flips_are_drawn_for_each_example_of_each_epoch():
    made = take(200, flip=True)
    flipped = np.concatenate([batch['image'][:, 0, 0, 0] > batch['image'][:, 0, -1, 0] for batch in made])
    assert 0.45 < flipped.mean() < 0.55
    labels = np.concatenate([batch['label'] for batch in made])
    assert {(int(label), bool(flip)) for label, flip in zip(labels, flipped, strict=True)} == set(
        itertools.product(range(10), (True, False))
    )
    unflipped = take(3)
    assert all((batch['image'][:, 0, 0] < batch['image'][:, 0, -1]).all() for batch in unflipped)


def test_batches_own_their_memory_and_declare_their_types():
    first, second = take(2)
    assert first['image'].shape == (6, 4, 4, 3) and first['image'].dtype == np.uint8
    before = second['image'].copy()
    first['image'][:] = 0
    np.testing.assert_array_equal(second['image'], before)
    assert not np.shares_memory(first['image'], second['image'])
    (fresh,) = take(1)
    assert fresh['image'].any()


def test_without_arrays_there_are_pictures_alone():
    assert set(next(pipeline.batches(Counting(4), seed=0, batch=2))) == {'image'}


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'rows': []}, r'rows \[\] of a batch of 6'),
        ({'batch': 0}, 'batch of 0'),
        ({'rows': [5, 6]}, 'some of 0 to 5'),
        ({'start_step': -1}, 'start_step=-1'),
        ({'source': Counting(0)}, 'no examples'),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        take(1, **options)


def test_an_error_of_the_source_reaches_the_caller():
    class Broken(Counting):
        def __getitem__(self, index):
            raise ValueError('the disk is gone')

    with pytest.raises(ValueError, match='the disk is gone'):
        take(1, Broken(5))
