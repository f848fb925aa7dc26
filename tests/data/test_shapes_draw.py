"""The drawing: coverage is the area it should be, colours and places are where the words say."""

import numpy as np
import pytest

from jaxgen.data import shapes_draw, shapes_scene
from jaxgen.data.shapes_scene import BACKGROUNDS, COLOURS, PLACES, SHAPES, Object, Scene


@pytest.mark.parametrize('shape', SHAPES)
def test_coverage_has_the_shape_s_area_and_centroid(shape):
    extent, resolution, centre = 0.41, 64, (0.43, 0.55)
    cover = shapes_draw.coverage(shape, centre, extent, resolution)
    points = (np.arange(resolution) + 0.5) / resolution
    area = cover.sum() / resolution**2
    assert area == pytest.approx(shapes_draw.FILL[shape] * extent**2, rel=0.02)
    assert (cover.sum(0) @ points) / cover.sum() == pytest.approx(centre[0], abs=2e-3)
    below = centre[1] + shapes_draw.DROP[shape] * extent
    assert (cover.sum(1) @ points) / cover.sum() == pytest.approx(below, abs=2e-3)
    assert cover.min() == 0 and cover.max() == 1


def test_a_shape_over_the_edge_is_cut_and_one_outside_is_not_seen():
    whole = shapes_draw.coverage('square', (0.5, 0.5), 0.5, 32).sum()
    assert shapes_draw.coverage('square', (0.0, 0.5), 0.5, 32).sum() == pytest.approx(whole / 2)
    assert shapes_draw.coverage('square', (1.5, 0.5), 0.5, 32).sum() == 0


@pytest.mark.parametrize('resolution', [16, 32, 100, 512])
def test_colours_lie_at_their_places(resolution):
    objects = (Object('large', 'red', 'square', 'top left'), Object('small', 'white', 'circle', 'right'))
    picture = shapes_draw.render(Scene('navy', objects), resolution)
    assert picture.shape == (resolution, resolution, 3) and picture.dtype == np.uint8
    for thing in objects:
        column, row = (int(part * resolution) for part in PLACES[thing.place])
        assert tuple(picture[row, column]) == COLOURS[thing.colour]
    assert tuple(picture[-1, resolution // 2]) == BACKGROUNDS['navy']


def test_a_scene_is_the_same_picture_at_every_resolution():
    for index in range(5):
        scene = shapes_scene.draw_scene(np.random.default_rng(index), 'train', 3)
        small = shapes_draw.render(scene, 32, np.random.default_rng(7)).astype(float)
        large = shapes_draw.render(scene, 128, np.random.default_rng(7)).astype(float)
        shrunk = large.reshape(32, 4, 32, 4, 3).mean((1, 3))
        # A quarter of a pixel's coverage of the most contrasting colour would be 60.
        assert np.abs(small - shrunk).max() < 30


def test_colours_are_far_from_each_other_and_from_the_backgrounds():
    palette = np.array([*COLOURS.values(), *BACKGROUNDS.values()], float)
    distances = np.linalg.norm(palette[:, None] - palette, axis=-1)
    distances += 1e3 * np.eye(len(palette))
    assert distances[: len(COLOURS)].min() >= 95
    assert distances.min() >= 60  # backgrounds among themselves
