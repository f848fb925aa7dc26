"""Pictures of every kind come out upright, RGB, on white and square."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxgen import images


def encoded(image: Image.Image, kind: str = 'png', **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = images.decode(data)
    assert image.mode == 'RGB'
    return np.asarray(image)


def test_sixteen_bits_keep_their_upper_eight():
    ramp = np.arange(0, 2**16, 64, dtype=np.uint16).reshape(32, 32)
    expected = np.round(ramp / 257).astype(np.uint8)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(ramp)))[..., 1], expected)


def test_grey_palette_and_one_bit():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(grey)))[..., 2], grey)
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[:2] = (200, 10, 30)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(colours).quantize(4))), colours)
    assert set(np.unique(pixels(encoded(Image.fromarray(grey > 128))))) == {0, 255}


def test_what_is_see_through_lies_on_white():
    layers = np.zeros((2, 2, 4), np.uint8)
    layers[0, 0] = (200, 0, 0, 255)
    layers[0, 1] = (200, 0, 0, 0)
    layers[1, 0] = (0, 0, 0, 128)
    result = pixels(encoded(Image.fromarray(layers)))
    assert tuple(result[0, 0]) == (200, 0, 0) and tuple(result[0, 1]) == (255, 255, 255)
    assert 126 <= result[1, 0, 0] <= 128
    palette = Image.fromarray(np.zeros((2, 2), np.uint8), 'P')
    assert (pixels(encoded(palette, transparency=0)) == 255).all()
    assert (pixels(encoded(Image.new('LA', (2, 2), (0, 0)))) == 255).all()


@pytest.mark.parametrize(
    ('orientation', 'corner'), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0)), (2, (0, -1))]
)
def test_a_turned_photograph_is_upright(orientation, corner):
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:8, :8] = 255  # the corner that a viewer shows elsewhere
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = pixels(encoded(Image.fromarray(picture), 'jpeg', exif=exif, quality=95))
    assert result.shape[:2] == ((32, 16) if orientation >= 5 else (16, 32))
    assert result[corner].min() > 200 and result.mean() < 100


def test_cmyk_and_webp():
    assert pixels(encoded(Image.new('CMYK', (8, 8), (0, 255, 255, 0)), 'jpeg'))[4, 4, 0] > 200
    assert pixels(encoded(Image.new('RGB', (8, 8), (0, 0, 220)), 'webp'))[4, 4, 2] > 200


@pytest.mark.parametrize('size', [(64, 64), (100, 40), (33, 500), (20, 25), (7, 3)])
def test_squares_have_the_resolution_and_keep_the_mean(size):
    gradient = np.broadcast_to(np.linspace(0, 255, size[0]), (size[1], size[0])).astype(np.uint8)
    fitted = images.fit(Image.fromarray(gradient).convert('RGB'), 32)
    assert min(fitted.size) == 32
    assert fitted.size[0] / fitted.size[1] == pytest.approx(size[0] / size[1], rel=0.04)
    for along in (0.0, 0.37, 1.0):
        assert images.crop(fitted, 32, along).shape == (32, 32, 3)
    assert images.crop(fitted, 32).mean() == pytest.approx(127, abs=4)


def test_the_crop_lies_where_it_is_asked_for():
    wide = Image.fromarray(np.broadcast_to(np.arange(96, dtype=np.uint8), (32, 96))).convert('RGB')
    for along, first in ((0.0, 0), (0.5, 32), (1.0, 64)):
        assert images.crop(images.fit(wide, 32), 32, along)[0, 0, 0] == first
