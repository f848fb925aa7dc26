"""The synthetic source: declared shapes and kinds, seeded content."""

import numpy as np
import pytest

from jaxgen.data import synthetic
from jaxgen.data.source import Description


def test_examples_are_as_declared_and_seeded():
    source = synthetic.build(resolution=24, classes=7, examples=40)
    assert len(source) == 40 and source.description == Description(24, 7, True)
    for index in range(40):
        example = source[index]
        assert example['image'].shape == (24, 24, 3) and example['image'].dtype == np.uint8
        assert 0 <= example['label'] < 7
        assert 1 <= len(example['caption'].split()) <= 24
        np.testing.assert_array_equal(example['image'], source[index]['image'])
    assert {source[index]['label'] for index in range(40)} == set(range(7))


def test_seeds_splits_and_indices_differ():
    pictures = [
        synthetic.build(**options)[index]['image'].tobytes()
        for options in ({}, {'seed': 1}, {'split': 'test'})
        for index in (0, 1)
    ]
    assert len(set(pictures)) == 6


def test_what_is_not_declared_is_not_there():
    assert set(synthetic.build(classes=None, captions=False)[0]) == {'image'}


def test_it_ends():
    with pytest.raises(IndexError):
        synthetic.build(examples=3)[3]


@pytest.mark.parametrize('options', [{'examples': 0}, {'classes': 0}, {'split': 'all'}, {'resolution': 0}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError):
        synthetic.build(**options)
