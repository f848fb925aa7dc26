"""Prepared TensorFlow Datasets data sets, here the library's own and one of grey arrays."""

import numpy as np
import pytest
import tensorflow_datasets as tensorflow_datasets

from jaxgen.data import shapes, tfds
from jaxgen.data.shapes_scene import LABEL_NAMES
from jaxgen.data.source import Description


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp('tfds'))
    shapes.build(resolution=32, examples=12, test_examples=2, data_dir=directory)
    return directory


NAME = 'jaxgen_shapes/32px_12_2_objects1to3_seed0'


def test_a_prepared_data_set_is_read_under_the_library_s_names(data_dir):
    source = tfds.build(NAME, resolution=32, data_dir=data_dir, label_key='label', caption_key='caption')
    drawn = shapes.build(resolution=32, examples=12, test_examples=2, data_dir=data_dir)
    assert source.description == Description(32, 32, True, LABEL_NAMES) and len(source) == 12
    for index in range(12):
        assert {k: v for k, v in source[index].items() if k != 'image'} == {
            k: v for k, v in drawn[index].items() if k != 'image'
        }
        np.testing.assert_array_equal(source[index]['image'], drawn[index]['image'])


def test_slices_and_other_resolutions(data_dir):
    source = tfds.build(NAME, split='train[25%:]', resolution=16, data_dir=data_dir)
    assert len(source) == 9 and source.description == Description(16)
    assert source[0]['image'].shape == (16, 16, 3) and set(source[0]) == {'image'}


def test_arrays_and_words_in_other_features(tmp_path):
    class JaxgenGreys(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version('1.0.0')

        def _info(self):
            features = tensorflow_datasets.features
            return tensorflow_datasets.core.DatasetInfo(
                builder=self,
                features=features.FeaturesDict(
                    {'pixels': features.Tensor(shape=(8, 12, 1), dtype=np.uint8), 'title': features.Text()}
                ),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            for index in range(3):
                yield index, {'pixels': np.full((8, 12, 1), 50 * index, np.uint8), 'title': f'grey {index}'}

    JaxgenGreys(data_dir=str(tmp_path), file_format='array_record').download_and_prepare()
    options = {'resolution': 8, 'data_dir': str(tmp_path), 'image_key': 'pixels'}
    source = tfds.build('jaxgen_greys', caption_key='title', **options)
    assert [int(source[index]['image'].mean()) for index in range(3)] == [0, 50, 100]
    assert source[2]['caption'] == 'grey 2'
    with pytest.raises(ValueError, match='give one of classes'):
        tfds.build('jaxgen_greys', label_key='title', **options)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'dataset': 'no_such_set'}, "no data set 'no_such_set'"),
        ({'image_key': 'picture'}, "image_key is 'picture'.*'caption', 'image', 'label'"),
        ({'label_key': 'class'}, "label_key is 'class'"),
        ({'caption_key': 'text'}, "caption_key is 'text'"),
        ({'split': 'validation'}, 'validation'),
    ],
)
def test_what_is_not_there_is_said(data_dir, options, words):
    with pytest.raises(ValueError, match=words):
        tfds.build(**({'dataset': NAME, 'data_dir': data_dir} | options))
