"""Aspect buckets and fitting against diffusers' pipelines, and in numbers."""

import math

import numpy as np
import pytest
from golden.seeded import normal, relative_error

from jaxgen.conditioning import aspects

SIZES = [(h, w) for h in (96, 100, 333, 512, 719, 1000, 1024, 2048) for w in (64, 211, 512, 768, 1023, 2000)]


def test_buckets_in_numbers():
    assert aspects.buckets(1024)[:3] == ((512, 2048), (512, 1856), (576, 1792))
    assert [len(aspects.buckets(resolution)) for resolution in aspects.RESOLUTIONS] == [33, 33, 33, 40]
    for resolution in aspects.RESOLUTIONS:
        table = aspects.buckets(resolution)
        assert (resolution, resolution) in table and (1408, 2688) in aspects.buckets(2048)
        assert [h / w for h, w in table] == sorted(h / w for h, w in table)
        areas = [h * w / resolution**2 for h, w in table]
        assert 0.89 < min(areas) and max(areas) == 1
    assert aspects.nearest(512, 1080, 1920) == (384, 672)
    assert aspects.nearest(512, 1, 100) == (256, 1024)
    with pytest.raises(ValueError, match='exact size'):
        aspects.buckets(300)


def test_fitting_scales_and_cuts_the_middle():
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[None, :, None], (4, 8, 3))
    fitted = aspects.fit(ramp, 8, 8)  # twice as high, and eight columns of sixteen
    np.testing.assert_allclose(fitted[3, :, 0], np.arange(8) * 0.5 + 1.75, atol=1e-6)
    pixels = aspects.fit(np.asarray(ramp * 30, np.uint8), 8, 8)
    assert pixels.dtype == np.uint8 and pixels[0, 1, 0] == round(30 * 2.25)
    assert aspects.fit(ramp, 4, 8) is ramp
    assert aspects.fit(ramp[None], 3, 2).shape == (1, 3, 2, 3)


@pytest.mark.parity
def test_buckets_equal_diffusers():
    pytest.importorskip('torch')
    pytest.importorskip('diffusers')
    from diffusers.image_processor import PixArtImageProcessor
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as alpha
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as sigma

    tables = alpha.ASPECT_RATIO_256_BIN, alpha.ASPECT_RATIO_512_BIN, alpha.ASPECT_RATIO_1024_BIN
    for resolution, table in zip(aspects.RESOLUTIONS, (*tables, sigma.ASPECT_RATIO_2048_BIN)):
        assert aspects.buckets(resolution) == tuple((int(h), int(w)) for h, w in table.values())
        ratios = np.geomspace(0.2, 5, 4001)
        grid = [(math.ceil(1000 * ratio), 1000) for ratio in ratios]
        for height, width in SIZES + grid:
            theirs = PixArtImageProcessor.classify_height_width_bin(height, width, table)
            assert aspects.nearest(resolution, height, width) == theirs


@pytest.mark.parity
def test_fitting_equals_diffusers():
    torch = pytest.importorskip('torch')
    pytest.importorskip('diffusers')
    from diffusers.image_processor import PixArtImageProcessor

    for height, width in ((48, 80), (100, 37), (64, 64), (65, 130), (40, 41)):
        image = normal('image', (2, 64, 66, 3))
        theirs = PixArtImageProcessor.resize_and_crop_tensor(
            torch.from_numpy(image.transpose(0, 3, 1, 2).copy()), width, height
        )
        ours = aspects.fit(image, height, width)
        assert relative_error(ours, theirs.numpy().transpose(0, 2, 3, 1)) < 1e-5
