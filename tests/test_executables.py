"""Compiled programs on disk: they draw what compiling draws, and only for what they were compiled for."""

import hashlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import config as configs
from jaxgen import executables, generate
from jaxgen.processes import facts
from jaxgen.program import assemble
from jaxgen.recipe import build

PROMPTS = ['a large red circle at the left on a white background', 'a small blue square at the right']
CONFIG = {
    'data': {'name': 'shapes', 'resolution': 32},
    'model': {'name': 'dit', 'hidden': 8},
    'sampler': {'solver': {'name': 'euler'}},
}
ELSEWHERE = """
import hashlib, logging, sys
import jax
from jaxgen import config, executables, generate
from jaxgen.program import assemble
from jaxgen.recipe import build
executables.KEY = sys.argv[1]
executables.log.addHandler(logging.StreamHandler())
executables.log.setLevel(logging.INFO)
program = assemble(build(config.load('configs/quickstart.py:tiny', [])))
params = program.fresh().params
draw = generate.make_generator(program.recipe, program.mesh, 8, programs=sys.argv[2])
example = program.recipe.conditioner.example(sys.argv[3])
images = draw(params, [example], [7], program.recipe.sampler.knobs(steps=3))
print(hashlib.sha256(images.tobytes()).hexdigest())
print([name for name in ('tensorboardX', 'tensorflow_datasets', 'scipy.ndimage') if name in sys.modules])
"""


@pytest.fixture(scope='module', autouse=True)
def key(tmp_path_factory):
    """A key of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executables, 'KEY', str(tmp_path_factory.mktemp('home') / 'cache' / 'key'))
        yield executables.KEY


@pytest.fixture
def said(monkeypatch):
    """The lines that are told."""
    lines = []
    for name in ('info', 'warning'):
        monkeypatch.setattr(executables.log, name, lambda text, *values: lines.append(text % values))
    return lines


@pytest.fixture(scope='module')
def mesh():
    return jax.make_mesh((8,), ('data',))


@pytest.fixture
def x(mesh):
    return jax.device_put(jnp.arange(8.0), jax.NamedSharding(mesh, jax.P('data')))


@pytest.fixture
def folder(tmp_path, mesh, x):
    """The kept program of x + 1."""
    executables.save(str(tmp_path), jax.jit(lambda x: x + 1), (x,), CONFIG, mesh, size=None)
    return tmp_path


def compiled(x):
    """What is run where no program is found, told from the kept one by what it gives."""
    return x + 2


def draw(folder, mesh, config=CONFIG, size=None):
    return executables.kept(compiled, str(folder), config, mesh, size=size)


@pytest.fixture(scope='module')
def tiny():
    program = assemble(build(configs.load('configs/quickstart.py:tiny', [])))
    return program, program.fresh().params


@pytest.fixture(scope='module')
def programs(tiny, tmp_path_factory):
    """A folder with the drawing program of the tiny quick start."""
    folder = tmp_path_factory.mktemp('programs')
    assert len(generate.keep_programs(tiny[0], str(folder))) == 1  # eight devices: the least is all
    return str(folder)


def test_kept_program_draws_what_compiling_draws(tiny, programs, monkeypatch):
    program, params = tiny
    recipe = program.recipe
    examples = [recipe.conditioner.example(prompt) for prompt in PROMPTS]

    def drawn(**where):
        make = generate.make_generator(recipe, program.mesh, 8, **where)
        ask = recipe.sampler.knobs
        yield make(params, examples, [0, 1], ask())
        yield make(params, examples, [5, 2**31], ask(steps=3, guidance=2.5, shift=2))
        yield make(params, examples[:1], [3], ask(steps=1), negatives=examples[1:])

    expected = list(drawn())

    def traced(*arguments):
        raise AssertionError('a program is kept, and this call was traced')

    monkeypatch.setattr(generate, 'draw_step', lambda *arguments: traced)
    for kept, theirs in zip(drawn(programs=programs), expected, strict=True):
        np.testing.assert_array_equal(kept, theirs)
    assert not np.array_equal(expected[0], expected[1])


def test_kept_program_runs_in_another_process(tiny, programs, key):
    program, params = tiny
    here = generate.make_generator(program.recipe, program.mesh, 8)(
        params, [program.recipe.conditioner.example(PROMPTS[0])], [7], program.recipe.sampler.knobs(steps=3)
    )
    command = [sys.executable, '-c', ELSEWHERE, key, programs, PROMPTS[0]]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': '.'})
    assert done.returncode == 0, done.stderr
    assert 'Drawing by the program' in done.stderr
    assert done.stdout.split('\n')[:2] == [hashlib.sha256(here.tobytes()).hexdigest(), '[]']


def test_what_was_kept_is_run(folder, mesh, x, said):
    call = draw(folder, mesh)
    np.testing.assert_array_equal(call(x), x + 1)
    np.testing.assert_array_equal(call(x + 3), x + 4)
    assert len(said) == 1 and said[0].startswith('Drawing by the program')


@pytest.mark.parametrize(
    'change',
    ['config', 'size', 'code', 'versions', 'instructions', 'settings', 'shape', 'dtype', 'placement', 'mesh'],
)
def test_anything_else_is_compiled(folder, mesh, x, said, monkeypatch, change):
    config, size = CONFIG, None
    match change:
        case 'config':
            config = CONFIG | {'model': {'name': 'dit', 'hidden': 16}}
        case 'size':
            size = (32, 64)
        case 'code':
            monkeypatch.setattr(executables, 'CODE', 'another')
        case 'versions':
            monkeypatch.setattr(facts, 'versions', lambda: {'jaxlib': '0.0.1'})
        case 'instructions':
            monkeypatch.setattr(executables, '_instructions', lambda: 'avx9')
        case 'settings':
            monkeypatch.setenv('XLA_FLAGS', os.environ['XLA_FLAGS'] + ' --xla_cpu_enable_fast_math=true')
        case 'shape':
            x = jnp.arange(16.0)
        case 'dtype':
            x = x.astype(jnp.bfloat16)
        case 'placement':
            x = jax.device_put(x, jax.NamedSharding(mesh, jax.P()))
        case 'mesh':
            mesh = jax.make_mesh((4, 2), ('data', 'fsdp'))
    np.testing.assert_array_equal(draw(folder, mesh, config, size)(x), x + 2)
    named = dict.fromkeys(('shape', 'dtype', 'placement'), 'other shapes') | {'size': 'chosen.size'}
    assert len(said) == 1 and f'fits ({named.get(change, change)}' in said[0]


def test_what_training_alone_reads_changes_nothing(folder, mesh, x):
    config = CONFIG | {'train': {'steps': 7}, 'data': {'name': 'folder', 'resolution': 32}}
    np.testing.assert_array_equal(draw(folder, mesh, config)(x), x + 1)


@pytest.mark.parametrize('harm', ['cut', 'flipped', 'emptied', 'foreign', 'key'])
def test_damaged_and_foreign_files_are_left_alone(folder, mesh, x, said, harm, tmp_path, monkeypatch):
    (file,) = folder.glob('*.program')
    content = bytearray(file.read_bytes())
    match harm:
        case 'cut':
            file.write_bytes(content[: len(content) // 2])
        case 'flipped':
            content[-100] ^= 1
            file.write_bytes(content)
        case 'emptied':
            file.write_bytes(b'')
        case 'foreign':
            file.write_bytes(b'a text\nof several lines\n' * 10)
        case 'key':
            monkeypatch.setattr(executables, 'KEY', str(tmp_path / 'another user'))
    monkeypatch.setattr(
        executables.serialize_executable, 'deserialize_and_load', None
    )  # nothing is unpickled
    np.testing.assert_array_equal(draw(folder, mesh)(x), x + 2)
    assert len(said) == 1 and 'damaged, or another user made it); one is compiled.' in said[0]


def test_folder_of_other_files(tmp_path, mesh, x, said):
    (tmp_path / 'x.program').write_bytes(b'\xff' * 100)
    (tmp_path / 'y.program').write_bytes(b' ' * 32 + b'[]\n')
    np.testing.assert_array_equal(draw(tmp_path, mesh)(x), x + 2)
    assert len(said) == 1 and 'one is compiled' in said[0]
    np.testing.assert_array_equal(draw(tmp_path / 'none', mesh)(x), x + 2)
    assert len(said) == 1


def test_program_that_does_not_run(folder, mesh, x, said, monkeypatch):
    def load(*arguments, **options):
        def run(*arguments):
            raise jax.errors.JaxRuntimeError('NOT_FOUND: Function wrapped_compare not found')

        return run

    monkeypatch.setattr(executables.serialize_executable, 'deserialize_and_load', load)
    np.testing.assert_array_equal(draw(folder, mesh)(x), x + 2)
    assert 'NOT_FOUND' in said[-1] and 'one is compiled' in said[-1]


def test_key_is_the_users_alone(folder, key):
    assert os.stat(key).st_mode & 0o777 == 0o600


def test_export_is_refused_where_it_could_not_be_trusted(mesh, x, folder, monkeypatch):
    strange = CONFIG | {'sampler': {'solver': {'name': 'my_package.my_solver'}}}
    with pytest.raises(ValueError, match="'my_package.my_solver' is not of it"):
        executables.check(strange)
    assert draw(folder, mesh, strange) is compiled
    executables.check(CONFIG | {'data': {'name': 'my_package.my_data', 'resolution': 32}})
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(ValueError, match='there are 2'):
        executables.check(CONFIG)
    assert draw(folder, mesh) is compiled
