"""The data set on disk: deterministic, split, safe under kills and several processes, no TensorFlow."""

import hashlib
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
from etils import epath

from jaxgen.data import shapes, shapes_builder, shapes_scene
from jaxgen.data.source import Description

SMALL = {'resolution': 16, 'examples': 30, 'test_examples': 8}

READ_ALONE = """
import hashlib, sys
from jaxgen.data import shapes
source = shapes.build(data_dir=sys.argv[1], resolution=16, examples=30, test_examples=8)
assert "tensorflow" not in sys.modules, "TensorFlow was imported"
print(hashlib.sha256(b"".join(source[i]["image"].tobytes() for i in range(30))).hexdigest())
"""


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp('shapes'))


def test_examples_are_those_drawn_for_their_index(data_dir):
    for split, count in (('train', 30), ('test', 8)):
        source = shapes.build(split, data_dir=data_dir, **SMALL)
        assert len(source) == count
        sizes = shapes_builder.Sizes(16, 30, 8, (1, 3), 0)
        for index in (0, 3, count - 1, 3):  # the second time from memory
            drawn, example = shapes_builder.draw(sizes, split, index), source[index]
            np.testing.assert_array_equal(example['image'], drawn['image'])
            assert (example['caption'], example['label']) == (drawn['caption'], drawn['label'])
    assert source.description == Description(16, 32, True, shapes_scene.LABEL_NAMES)


def test_no_triple_of_the_test_split_is_in_the_train_split(data_dir):
    triples = {}
    for split in ('train', 'test'):
        source = shapes.build(split, data_dir=data_dir, **SMALL)
        scenes = [shapes_scene.parse(source[index]['caption']) for index in range(len(source))]
        triples[split] = {(o.colour, o.shape, o.place) for scene in scenes for o in scene.objects}
        assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    assert not triples['train'] & triples['test']


def test_a_smaller_data_set_is_the_beginning_of_a_larger_one_and_seeds_differ(data_dir):
    large = shapes.build(data_dir=data_dir, **SMALL)
    small = shapes.build(data_dir=data_dir, **(SMALL | {'examples': 5}))
    other = shapes.build(data_dir=data_dir, seed=1, **(SMALL | {'examples': 5}))
    assert [small[i]['caption'] for i in range(5)] == [large[i]['caption'] for i in range(5)]
    assert [small[i]['caption'] for i in range(5)] != [other[i]['caption'] for i in range(5)]


def test_memory_is_used_only_where_the_split_is_small(data_dir, monkeypatch):
    kept = shapes.build(data_dir=data_dir, **SMALL)
    monkeypatch.setattr(shapes, 'CACHE_BYTES', 30 * 16 * 16 * 3 - 1)
    read = shapes.build(data_dir=data_dir, **SMALL)
    assert kept[4]['image'].base is kept[4]['image'].base is not None
    assert not kept[4]['image'].flags.writeable
    np.testing.assert_array_equal(kept[4]['image'], read[4]['image'])
    assert read[4]['image'] is not read[4]['image']


def test_a_stop_in_the_middle_leaves_nothing_half_used(tmp_path, monkeypatch):
    sizes = shapes_builder.Sizes(16, 30, 8, (1, 3), 0)
    whole_draw = shapes_builder.draw

    def stopped(sizes, split, index):
        if split == 'test':
            raise KeyboardInterrupt
        return whole_draw(sizes, split, index)

    monkeypatch.setattr(shapes_builder, 'draw', stopped)
    with pytest.raises(KeyboardInterrupt):
        shapes_builder.prepare(str(tmp_path), sizes)
    assert not shapes_builder.JaxgenShapes(sizes, str(tmp_path)).is_prepared()
    # What a killed process, which cannot tidy up, would have left.
    left = tmp_path / 'jaxgen_shapes' / sizes.name / 'incomplete.ABC_1.0.0'
    left.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(shapes_builder, 'draw', whole_draw)
    assert len(shapes.build(data_dir=str(tmp_path), **SMALL)) == 30
    assert not left.exists()


def test_processes_that_start_at_once_read_the_same_and_import_no_tensorflow(tmp_path):
    environment = os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])}
    started = [
        subprocess.Popen(
            [sys.executable, '-c', READ_ALONE, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    sizes = shapes_builder.Sizes(16, 30, 8, (1, 3), 0)
    drawn = b''.join(shapes_builder.draw(sizes, 'train', index)['image'].tobytes() for index in range(30))
    read = [out.split()[-1] for out, _ in ended]  # TFDS prints too
    assert read == [hashlib.sha256(drawn).hexdigest()] * 2


def test_a_second_writer_waits_for_the_first(tmp_path):
    sizes = shapes_builder.Sizes(16, 4, 2, (1, 1), 0)
    second = threading.Thread(target=shapes_builder.prepare, args=(str(tmp_path), sizes))
    with shapes_builder._alone(epath.Path(tmp_path)):
        second.start()
        second.join(0.5)
        assert second.is_alive() and not (tmp_path / 'jaxgen_shapes').exists()
    second.join(60)
    assert shapes_builder.JaxgenShapes(sizes, str(tmp_path)).is_prepared()


def test_the_environment_names_the_data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv('JAXGEN_DATA_DIR', str(tmp_path / 'elsewhere'))
    shapes.build(**SMALL)
    assert (tmp_path / 'elsewhere' / 'jaxgen_shapes').is_dir()


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'split': 'valid'}, "split is 'valid'"),
        ({'resolution': 8}, 'resolution is 8'),
        ({'objects': (2, 1)}, 'objects='),
        ({'examples': 0}, 'examples=0'),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        shapes.build(**options)
