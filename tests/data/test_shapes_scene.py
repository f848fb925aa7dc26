"""The scenes: what is held out, and that captions say all and can be read back."""

import itertools

import numpy as np
import pytest

from jaxgen.data import shapes_scene
from jaxgen.data.shapes_scene import COLOURS, PLACES, SHAPES, SIZES, Object, Scene


def test_held_out_triples_are_over_a_fifth_and_every_pair_is_trained_on():
    train, test = (set(shapes_scene.COMBINATIONS[split]) for split in ('train', 'test'))
    assert not train & test
    assert train | test == set(itertools.product(COLOURS, SHAPES, PLACES))
    assert len(test) / len(train | test) >= 0.2
    for pair in ((0, 1), (0, 2), (1, 2)):
        assert {tuple(c[i] for i in pair) for c in test} <= {tuple(c[i] for i in pair) for c in train}
    for axis, values in enumerate((COLOURS, SHAPES, PLACES)):
        assert {c[axis] for c in test} == set(values)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_scenes_keep_to_their_split_and_no_two_objects_share_a_place(split):
    seen = set()
    for index in range(300):
        scene = shapes_scene.draw_scene(np.random.default_rng(index), split, 1 + index % 3)
        assert len(scene.objects) == 1 + index % 3 == len({thing.place for thing in scene.objects})
        for thing in scene.objects:
            assert shapes_scene.held_out(thing.colour, thing.shape, thing.place) == (split == 'test')
            seen.add((thing.colour, thing.shape, thing.place))
    assert len(seen) > len(shapes_scene.COMBINATIONS[split]) * 0.7


def test_captions_of_all_attributes_and_wordings_parse_back():
    triples = itertools.product(SIZES, COLOURS, SHAPES, PLACES)
    backgrounds = itertools.cycle(shapes_scene.BACKGROUNDS)
    captions = set()
    for attributes, background in zip(triples, backgrounds, strict=False):
        scene = Scene(background, (Object(*attributes),))
        for wording in range(shapes_scene.WORDINGS):
            captions.add(shapes_scene.caption(scene, wording))
            assert shapes_scene.parse(shapes_scene.caption(scene, wording)) == scene
    assert len(captions) == len(SIZES) * len(COLOURS) * len(SHAPES) * len(PLACES) * shapes_scene.WORDINGS


def test_captions_of_several_objects_parse_back():
    for index in range(100 * shapes_scene.WORDINGS):
        scene = shapes_scene.draw_scene(np.random.default_rng(index), 'train', 1 + index % 4)
        text = shapes_scene.caption(scene, index % shapes_scene.WORDINGS)
        assert shapes_scene.parse(text) == scene
        for thing in scene.objects:
            assert all(word in text for word in vars(thing).values())


@pytest.mark.parametrize(
    'text',
    [
        '',
        'a large red circle at the top left',
        'a large red circle at the top left and on a black background',
        'a large pink circle at the top left on a black background',
        'a large red circle at the top left on a black background.',
        'a large red circle at the top left and one red cross, small, at the top on a black background',
    ],
)
def test_other_captions_are_refused(text):
    with pytest.raises(ValueError, match='grammar'):
        shapes_scene.parse(text)


def test_labels_name_the_first_object():
    scene = Scene('navy', (Object('small', 'cyan', 'cross', 'top'), Object('large', 'red', 'circle', 'left')))
    assert shapes_scene.LABEL_NAMES[shapes_scene.label(scene)] == 'cyan cross'
    assert len(set(shapes_scene.LABEL_NAMES)) == len(COLOURS) * len(SHAPES)


def test_a_scene_has_room_for_nine():
    scene = shapes_scene.draw_scene(np.random.default_rng(0), 'test', 9)
    assert {thing.place for thing in scene.objects} == set(PLACES)
    with pytest.raises(ValueError, match='10 objects'):
        shapes_scene.draw_scene(np.random.default_rng(0), 'test', 10)
