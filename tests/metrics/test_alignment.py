"""The checker reads true pictures, also noisy and blurred ones, and is not fooled by others."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from jaxgen.data import shapes_draw, shapes_scene
from jaxgen.data.shapes_scene import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Object, Scene
from jaxgen.metrics import alignment


def asked_for(*captions):
    return [{'caption': caption} for caption in captions]


def drawn(split, count, resolution):
    pictures, captions = [], []
    for index in range(count):
        rng = np.random.default_rng((11, split == 'test', index))
        scene = shapes_scene.draw_scene(rng, split, 1 + index % 3)
        pictures.append(shapes_draw.render(scene, resolution, rng))
        captions.append(shapes_scene.caption(scene, index % shapes_scene.WORDINGS))
    return np.stack(pictures), asked_for(*captions)


@pytest.mark.parametrize('resolution', [32, 64])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_true_pictures_are_right_and_those_of_other_captions_wrong(split, resolution):
    pictures, captions = drawn(split, 300, resolution)
    metric = alignment.build()
    assert metric.score(pictures, captions)['alignment'] >= 0.99
    others = metric.score(pictures, captions[3:] + captions[:3])  # of as many objects
    assert others['alignment'] < 0.05 and others['count'] >= 0.99
    assert others['colour'] < 0.4 and others['shape'] < 0.6 and others['place'] < 0.5


def _noise(picture):
    noise = np.random.default_rng(int(picture.sum())).normal(0, 8, picture.shape)
    return np.clip(np.round(picture + noise), 0, 255).astype(np.uint8)


def _blur(picture):
    radius = 0.5 if len(picture) == 32 else 1.6
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def _jpeg(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'jpeg', quality=90)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(
    ('spoil', 'resolution', 'least'),
    [
        (_noise, 32, 0.99),
        (_blur, 32, 0.99),
        (_blur, 64, 0.97),
        (lambda picture: _noise(_blur(picture)), 32, 0.98),
        (_jpeg, 64, 0.97),
    ],
)
def test_mild_noise_blur_and_compression_change_little(spoil, resolution, least):
    pictures, captions = drawn('test', 200, resolution)
    spoiled = np.stack([spoil(picture) for picture in pictures])
    assert alignment.build().score(spoiled, captions)['alignment'] >= least


def test_one_wrong_word_is_seen_and_named():
    scene = Scene(
        'grey', (Object('large', 'red', 'circle', 'top left'), Object('small', 'blue', 'cross', 'right'))
    )
    picture = shapes_draw.render(scene, 32)
    metric = alignment.build()
    choices = {'size': SIZES, 'colour': COLOURS, 'shape': SHAPES, 'place': PLACES}
    for index, thing in enumerate(scene.objects):
        for name, words in choices.items():
            for word in set(words) - {getattr(thing, name)} - {other.place for other in scene.objects}:
                objects = list(scene.objects)
                objects[index] = dataclasses.replace(thing, **{name: word})
                asked = shapes_scene.caption(dataclasses.replace(scene, objects=tuple(objects)))
                rates = metric.score(picture[None], asked_for(asked))
                assert rates.pop('alignment') == 0.0 and rates.pop(name) == 0.5
                assert set(rates.values()) == {1.0}
    for background in set(BACKGROUNDS) - {scene.background}:
        asked = shapes_scene.caption(dataclasses.replace(scene, background=background))
        assert not metric.judge(picture, {'caption': asked})
    assert metric.judge(picture, {'caption': shapes_scene.caption(scene)})


def test_an_object_too_many_or_too_few_is_seen():
    one, two = Object('large', 'white', 'square', 'top'), Object('small', 'green', 'triangle', 'left')
    fewer, more = Scene('navy', (one,)), Scene('navy', (one, two))
    metric = alignment.build()
    for shown, asked in ((fewer, more), (more, fewer)):
        rates = metric.score(shapes_draw.render(shown, 32)[None], asked_for(shapes_scene.caption(asked)))
        assert rates['count'] == 0.0 and rates['alignment'] == 0.0
        assert rates['shape'] == len(shown.objects[: len(asked.objects)]) / len(asked.objects)


def test_the_order_in_the_caption_does_not_matter():
    objects = shapes_scene.draw_scene(np.random.default_rng(0), 'test', 3).objects
    picture = shapes_draw.render(Scene('brown', objects), 32)
    assert alignment.build().judge(picture, {'caption': shapes_scene.caption(Scene('brown', objects[::-1]))})


def test_neighbours_of_all_colours_stay_apart():
    metric = alignment.build()
    for index, colour in enumerate(COLOURS):
        other = list(COLOURS)[(index + index % 2) % len(COLOURS)]  # every second time the same colour
        objects = (Object('large', colour, 'square', 'centre'), Object('large', other, 'square', 'right'))
        for background in BACKGROUNDS:
            scene = Scene(background, objects)
            picture = shapes_draw.render(scene, 32, np.random.default_rng(index))
            assert metric.judge(picture, {'caption': shapes_scene.caption(scene)}), scene


@pytest.mark.parametrize('resolution', [16, 33, 64])
def test_pictures_of_nothing_are_read_without_an_error(resolution):
    noise = np.random.default_rng(0).integers(0, 256, (4, resolution, resolution, 3), np.uint8)
    flat = np.full((1, resolution, resolution, 3), 90, np.uint8)
    halves = flat.copy()
    halves[:, : resolution // 2] = 255
    metric = alignment.build(prompts=6)
    rates = metric.score(np.concatenate([noise, flat, halves]), metric.examples())
    assert rates['alignment'] == 0.0 and all(0.0 <= rate <= 1.0 for rate in rates.values())


def test_prompts_are_held_out_seeded_and_half_of_two_objects():
    examples = alignment.build(prompts=40).examples()
    scenes = [shapes_scene.parse(example['caption']) for example in examples]
    assert sorted(len(scene.objects) for scene in scenes) == [1] * 20 + [2] * 20
    assert all(shapes_scene.held_out(o.colour, o.shape, o.place) for scene in scenes for o in scene.objects)
    assert [example['label'] for example in examples] == [shapes_scene.label(scene) for scene in scenes]
    assert examples == alignment.build(prompts=40).examples()
    assert examples[:10] == alignment.build(prompts=10).examples()
    assert examples != alignment.build(prompts=40, seed=1).examples()
    assert len({example['caption'] for example in examples}) == 40


def test_errors_say_what_to_do():
    metric = alignment.build(prompts=1)
    asked = metric.examples()[0]
    with pytest.raises(ValueError, match='2 pictures for 1 examples'):
        metric.score(np.zeros((2, 32, 32, 3), np.uint8), [asked])
    with pytest.raises(ValueError, match='uint8'):
        metric.judge(np.zeros((32, 32, 3), np.float32), asked)
    with pytest.raises(ValueError, match='square'):
        metric.judge(np.zeros((32, 16, 3), np.uint8), asked)
    with pytest.raises(ValueError, match='grammar'):
        metric.judge(np.zeros((32, 32, 3), np.uint8), {'caption': 'a cat'})
    with pytest.raises(ValueError, match='prompts=0'):
        alignment.build(prompts=0)
