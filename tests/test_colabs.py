"""The notebooks run from the first cell to the last, and are committed without what they put out."""

import json
import pathlib
import sys
import types

import jax
import matplotlib
import numpy as np
import pytest
from configurations import FOLDER
from PIL import Image

COLABS = FOLDER.parent / 'colabs'
NOTEBOOKS = sorted(path.name for path in COLABS.glob('*.ipynb'))


def cells(name):
    """The code of a notebook's cells by their ids."""
    notebook = json.loads((COLABS / name).read_text())
    assert notebook['nbformat'] == 4
    return {cell['id']: cell for cell in notebook['cells'] if cell['cell_type'] == 'code'}


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_nothing_is_committed_that_it_put_out(name):
    for cell in cells(name).values():
        assert not cell['outputs'] and cell['execution_count'] is None


@pytest.fixture
def displayed(monkeypatch, tmp_path):
    """What a notebook shows, where there is no notebook."""
    shown = []
    parent = types.SimpleNamespace(version_info=(9, 0), get_ipython=lambda: None, __path__=[])
    monkeypatch.setitem(sys.modules, 'IPython', parent)
    monkeypatch.setitem(sys.modules, 'IPython.display', types.SimpleNamespace(display=shown.append))
    monkeypatch.setenv('JAXGEN_DATA_DIR', str(tmp_path / 'data'))
    matplotlib.use('agg')
    monkeypatch.setattr('matplotlib.pyplot.show', lambda: shown.append('curve'))
    jax.config.update('jax_disable_most_optimizations', True)
    yield shown
    jax.config.update('jax_disable_most_optimizations', False)


def run(notebook, **parameters):
    """Run the cells, with other parameters; what they named."""
    names = {}
    for id, cell in cells(notebook).items():
        exec(compile(''.join(cell['source']), id, 'exec'), names)
        if id == 'parameters':
            names.update(parameters)
    return names


def test_published_weights_are_drawn_with(displayed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    names = run('sample_pixart.ipynb')
    assert all(isinstance(one, Image.Image) for one in displayed) and len(displayed) == 6
    side = names['side']
    assert names['images'].shape == (2, side, side, 3) and names['wide'].shape == (side, 2 * side, 3)
    assert all(
        image.std() > 1 for image in (*names['images'], *names['turned'], *names['four'], names['again'])
    )
    np.testing.assert_array_equal(names['draw'](names['PROMPTS'], seed=0), names['images'])


def test_the_quick_start_runs(displayed, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)  # as on Colab: no checkout in sight
    names = run('quickstart.ipynb', VARIANT='tiny', WORKDIR=str(tmp_path / 'run'))
    printed = capsys.readouterr()
    assert names['trained']['step'] == 3 and 'step 3' in printed.out
    assert '3/3' in printed.err, 'the bar'
    assert 'alignment' in printed.out and set(names['record']['metrics']) >= {'alignment', 'colour'}
    pictures = [one for one in displayed if isinstance(one, Image.Image)]
    assert displayed.count('curve') == 1 and len(pictures) == 5
    assert all(np.asarray(picture).std() > 1 for picture in pictures)
    left = slice(0, names['mask'].shape[1] // 2)
    np.testing.assert_allclose(names['painted'][0][:, left], names['images'][1][:, left], atol=1)
    assert (pathlib.Path(names['WORKDIR']) / 'train.json').exists()
