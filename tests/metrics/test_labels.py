"""The judge of labels: true pictures are right; of another label, two objects or none, they are wrong."""

import numpy as np
import pytest

from jaxgen.data import shapes_draw, shapes_scene
from jaxgen.data.shapes_scene import LABEL_NAMES
from jaxgen.metrics import labels


def drawn(count, objects=1):
    scenes = [shapes_scene.draw_scene(np.random.default_rng((3, i)), 'train', objects) for i in range(count)]
    pictures = [shapes_draw.render(scene, 32, np.random.default_rng(i)) for i, scene in enumerate(scenes)]
    return np.stack(pictures), [{'label': shapes_scene.label(scene)} for scene in scenes]


def test_true_pictures_are_right_and_others_wrong():
    pictures, examples = drawn(200)
    metric = labels.build()
    right = metric.score(pictures, examples)
    assert set(right) == {'label', 'colour', 'shape', 'count'} and min(right.values()) >= 0.98
    other = [{'label': (example['label'] + 9) % len(LABEL_NAMES)} for example in examples]
    wrong = metric.score(pictures, other)  # of another colour and another shape
    assert wrong['label'] == 0 and wrong['colour'] < 0.02 and wrong['count'] >= 0.98
    assert not metric.judge(pictures[0], other[0]) and metric.judge(pictures[0], examples[0])


def test_pictures_that_are_not_square_are_read():
    pictures, examples = drawn(100)
    wide = np.concatenate([pictures, np.broadcast_to(pictures[:, :1, :1], (100, 32, 24, 3))], axis=2)
    for shown in (wide, wide.swapaxes(1, 2)[:, ::-1, ::-1]):
        found = labels.build().score(np.ascontiguousarray(shown), examples)
        assert found['colour'] >= 0.95 and found['count'] >= 0.95
    assert labels.build().score(wide, examples)['label'] >= 0.9


def test_two_objects_and_none_are_wrong():
    metric = labels.build()
    pictures, examples = drawn(50, objects=2)
    assert metric.score(pictures, examples)['label'] == 0
    blank = np.full((1, 32, 32, 3), 84, np.uint8)
    assert metric.score(blank, examples[:1]) == {'label': 0, 'colour': 0, 'shape': 0, 'count': 0}


def test_examples_are_all_labels_in_turn():
    examples = labels.build(40).examples()
    assert [example['label'] for example in examples] == [*range(32), *range(8)]
    assert examples[9]['caption'] == LABEL_NAMES[9]
    with pytest.raises(ValueError, match="not of 'synthetic'"):
        labels.build(8, 'synthetic')
