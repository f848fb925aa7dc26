"""The map of the house: a room imports only from floors below its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxgen

ROOT = Path(jaxgen.__file__).parent

# Ground floor first. Rooms on one floor do not import each other.
FLOORS = (
    ('uncached',),
    ('artifact', 'config', 'estimate', 'images', 'keys', 'kernels', 'pictures', 'processes'),
    ('layers',),
    ('models', 'tokenizers', 'encoders'),
    ('weights', 'conditioning'),
    ('diffusion', 'autoregressive', 'reconstruction'),
    ('objectives', 'adapters', 'quantize'),
    ('data',),
    ('metrics',),
    ('training',),
    ('sources',),
    ('recipe', 'pretrained'),
    ('program',),
    ('executables', 'features'),
    ('generate',),
    ('search',),
    ('jobs',),
    ('main',),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
NETWORKS = {'models', 'encoders', 'tokenizers'}
WITHOUT_NETWORKS = {'objectives', 'adapters', 'quantize', 'metrics'}
FOREIGN = {'torch', 'tensorflow', 'diffusers', 'transformers'}


def imports(file: Path) -> set[str]:
    """Every module that a file imports, by its full name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def room_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix('.py')


FILES = [file for file in sorted(ROOT.rglob('*.py')) if file.parent != ROOT or file.name != '__init__.py']


@pytest.mark.parametrize('file', FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_only_floors_below(file):
    room = room_of(file)
    if room == 'configs':
        return
    assert room in FLOOR, f'{room} has no floor; give it one in FLOORS'
    for name in imports(file):
        top, _, rest = name.partition('.')
        assert top not in FOREIGN, f'{file} imports {top}'
        other = rest.partition('.')[0]
        if top != 'jaxgen' or other in ('', '__version__', room) or other not in FLOOR:
            continue
        assert FLOOR[other] < FLOOR[room], (
            f'{room} (floor {FLOOR[room]}) imports {name} (floor {FLOOR[other]})'
        )
        assert not (room in WITHOUT_NETWORKS and other in NETWORKS), f'{room} imports the network {name}'


def test_configs_import_ml_collections_only():
    for file in (ROOT.parent / 'configs').glob('*.py'):
        assert {name.partition('.')[0] for name in imports(file)} == {'ml_collections'}, file


def test_files_stay_readable():
    long = {file.name: lines for file in FILES if (lines := len(file.read_text().splitlines())) > 400}
    assert not long, f'split these, or say at their top why not: {long}'


def test_main_needs_neither_torch_nor_tensorflow():
    blocked = 'import sys\nfor name in {!r}: sys.modules[name] = None\nimport jaxgen.main, jaxgen.jobs.train'
    subprocess.run([sys.executable, '-c', blocked.format(sorted(FOREIGN))], check=True, cwd=ROOT.parent)
