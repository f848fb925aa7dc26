"""The configs of the repository by name, for the tests of whatever runs them."""

import pathlib
import runpy

from ml_collections import ConfigDict

import jaxgen

FOLDER = pathlib.Path(jaxgen.__file__).parents[1] / 'configs'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))


def configuration(name: str, variant: str = 'tiny') -> ConfigDict:
    """What configs/<name>.py:<variant> says."""
    return runpy.run_path(str(FOLDER / f'{name}.py'))['get_config'](variant)
