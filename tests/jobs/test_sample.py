"""Calls of the sampling job add to each other: nothing that was drawn before is lost."""

import json

import numpy as np
import pytest
from configurations import configuration
from PIL import Image

from jaxgen import recipe
from jaxgen.jobs import sample


@pytest.fixture
def job(monkeypatch, tmp_path):
    """The job with a generator that paints each picture in its seed's grey, and no checkpoint to read."""

    def paint(params, examples, seeds, knobs, negatives, progress, canvas):
        return np.stack([np.full((32, 32, 3), seed, np.uint8) for seed in seeds])

    monkeypatch.setattr(sample, 'check_params', lambda program, workdir, step: None)
    monkeypatch.setattr(sample, 'load_params', lambda program, workdir, step, names, width: (3, {}))
    monkeypatch.setattr(sample, 'make_generator', lambda recipe, mesh, batch, size, cut, programs: paint)
    built = recipe.build(configuration('quickstart'))
    return lambda *arguments, **options: sample.run(built, tmp_path, *arguments, **options)


def read(path):
    return json.loads(path.read_text())


def test_nothing_is_overwritten(job, tmp_path):
    first = job(['a red circle', 'a blue square'], count=2, seed=10)
    second = job(['a red circle'], seed=99, knobs='steps=1')
    third = job(['a red circle'], seed=7)
    assert first['files'] == [f'samples/{number:05d}.png' for number in range(4)]
    assert second['files'] == ['samples/00004.png'] and third['files'] == ['samples/00005.png']
    grids = [record['grid'] for record in (first, second, third)]
    assert grids == ['samples/grid.png', 'samples/grid_00004.png', 'samples/grid_00005.png']
    for record in (first, second, third):
        assert (tmp_path / record['grid']).exists()
        for file, seed in zip(record['files'], record['seeds'], strict=True):
            assert np.asarray(Image.open(tmp_path / file)).mean() == seed
    written = read(tmp_path / 'sample.json')
    assert written['files'] == third['files'] and written['config']['model']['name'] == 'pixart'
    assert [call['files'] for call in written['earlier']] == [second['files'], first['files']]
    assert all('config' not in call for call in written['earlier'])  # the same; it is said once


def test_a_record_of_something_else_is_no_obstacle(job, tmp_path):
    (tmp_path / 'sample.json').write_text('half a rec')
    assert job(['a red circle'])['files'] == ['samples/00000.png']
    assert 'earlier' not in read(tmp_path / 'sample.json')


def test_exact_asks_for_a_size(job):
    with pytest.raises(ValueError, match='--size=HEIGHTxWIDTH'):
        job(['a red circle'], exact=True)


def test_canvas(tmp_path):
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 40:] = 255
    Image.fromarray(wide).save(tmp_path / 'wide.png')
    path = str(tmp_path / 'wide.png')
    canvas = sample._canvas(32, path, path, None)
    assert canvas.image.shape == (32, 32, 3) and canvas.start == 1
    np.testing.assert_array_equal(canvas.mask, np.arange(32)[None] >= np.full((32, 1), 16))
    assert sample._canvas(32, path, '', 0.5).mask is None
    assert sample._canvas(32, '', '', None) is None
