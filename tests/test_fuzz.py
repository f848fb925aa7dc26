"""Configs and flags that nobody meant: each is built or refused in one line, and nothing is compiled for it.

Every shipped config, mutated: keys renamed, added and deleted, values of other types and sizes, sections and
names swapped between configs, flags made up.
"""

import copy
import inspect
import pkgutil
import time
import typing

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from compilations import compilations
from configurations import FOLDER, NAMES, configuration
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import jaxgen
from jaxgen import keys as random
from jaxgen import main, recipe
from jaxgen.conditioning.request import Request
from jaxgen.config import fits, plain
from jaxgen.data import shapes_builder
from jaxgen.diffusion import path, prediction
from jaxgen.program import assemble
from jaxgen.training import ema, guard, optimizer

SECONDS = 60  # of one example, on a machine that does other things too
TRACED = 8  # one in so many of those that are built is traced too in the ordinary run
FUNCTIONS = {
    'path': path.build,
    'prediction': prediction.build,
    'train': recipe.Train,
    'ema': ema.build,
    'guard': guard.build,
    'optimizer': optimizer.build,
}
ROOMS = {**recipe.ROOMS, 'solver': 'diffusion/solvers', 'spacing': 'diffusion/spacings'}
ODD = (
    *(None, True, False, '', 'x', 'a.b', 'jaxgen.models.dit', 'jaxgen.models.dit:SIZES', '../etc', 'vp'),
    *('dit', -1, 0, 1, 2, 3, 5, 7, 16, 1000, 2**31, 10**30, -(10**30), -0.5, 0.5, 1.0, 1.5, 1e-30, 1e30),
    *(float('nan'), float('inf'), (), (1,), (1, 2), (2, 1), ('a', 'b'), (-1, 10**12), (((),),), {}),
    *({'name': 'euler'}, {'name': 'captions', 'width': 8}, {'name': 3}, {1: 2}, {'data': 2, 'fsdp': 2}),
    *({'name': 'unipc', 'order': 3}, {'name': 'karras'}, {'name': 'training_steps'}, {'name': 'log_snr'}),
)
KINDS = ('rename', 'delete', 'odd', 'odd', 'fitting', 'fitting', 'scale', 'swap', 'name')
ORDINARY = settings(max_examples=500, deadline=None, database=None, derandomize=True, phases=[Phase.generate])


def names(section):
    """The names that a section's `name` could have."""
    room = f'{jaxgen.__path__[0]}/{ROOMS[section]}'
    return sorted(info.name for info in pkgutil.iter_modules([room]))


def tables(config, where=()):
    """The paths of all tables in a config, the whole first."""
    yield where
    for key, value in config.items():
        if isinstance(value, dict):
            yield from tables(value, (*where, key))


def at(config, where):
    for key in where:
        config = config[key]
    return config


def parameters(config, where):
    """The keys that a table could have with their types, as far as they are known."""
    if not where:
        return dict.fromkeys(recipe.SECTIONS, dict)
    try:
        name = at(config, where).get('name')
        room = f'diffusion.{where[-1]}s' if len(where) > 1 else name if where[0] == 'sampler' else None
        function = FUNCTIONS.get(where[0]) or recipe._resolve(where[0], name, room)
    except (ValueError, KeyError):
        return {'name': str}
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    return {key: hints.get(key) for key in inspect.signature(function).parameters} or {'name': str}


@st.composite
def mutated(draw, variants=('tiny',)):
    """A shipped config with one to four changes."""

    def one(values):
        return copy.deepcopy(draw(st.sampled_from(values)))

    def shipped():
        return configuration(one(NAMES), one(variants)).to_dict()

    config = shipped()
    for _ in range(draw(st.integers(1, 4))):
        where = one(list(tables(config)))
        table = at(config, where)
        key, kind = one(sorted(map(str, table)) or ['x']), one(KINDS)
        if kind == 'rename' and key in table:
            table[key[:-1] + one('aesz_')] = table.pop(key)
        elif kind == 'delete':
            table.pop(key, None)
        elif kind == 'odd':
            table[key] = one(ODD)
        elif kind == 'fitting':
            added, hint = one(sorted(parameters(config, where).items(), key=lambda item: item[0]))
            table[added] = one([value for value in ODD if fits(plain(value), hint)] or ODD)
        elif kind == 'scale' and isinstance(table.get(key), int | float):
            table[key] = table[key] * one((-1, 0, 2, 3, 0.5, 10**6, 1 / 3))
        elif kind == 'swap':
            other = shipped()
            section = one(sorted(other))
            config[section] = other[section]
        elif kind == 'name' and where and where[-1] in ROOMS:
            table['name'] = one(names(where[-1]))
    return config


FLAGS = ('config', 'mode', 'workdir', *main.OPTIONS, 'verbosity', 'configs', 'prmpt', '')
VALUES = (
    *('', 'x', '-1', '0', '1', '3', '1e999', 'nan', '99999999999999999999', 'train,sample', 'sample,plan'),
    *('train,evaluate', 'steps=2', 'steps=2,guidance=nan', 'steps=1e99', 'guidance', '=,=', '/', '/dev/null'),
    *('a red circle', 'red ' * 99, '\0', '{0}', '[1', '(' * 300, "{'name':'labels'}", 'quickstart.py:tiny'),
)
OVERRIDES = ('train.steps', 'train', 'model.name', 'model', 'data.resolution', 'mesh.data', '', '.', 'a.b.c')


@st.composite
def command_lines(draw):
    """The flags of a call, most of them wrong."""
    name, modes = draw(st.sampled_from(NAMES)), draw(st.sampled_from(('train,sample', 'plan', 'sample')))
    line = [f'--config={FOLDER / name}.py:tiny', f'--mode={modes}']
    for _ in range(draw(st.integers(0, 2))):
        value = draw(st.sampled_from(VALUES))
        if draw(st.booleans()):
            line.append(f'--{draw(st.sampled_from(FLAGS))}={value}')
        else:
            line.append(f'--config.{draw(st.sampled_from(OVERRIDES))}={value}')
    return line


class Nothing:
    """A data set without examples."""

    def as_data_source(self, split, decoders):
        return []


@pytest.fixture
def compiled(monkeypatch, caplog, tmp_path):
    """What was compiled; no data are drawn, and nothing is written but into a folder of the test."""
    monkeypatch.setattr(shapes_builder, 'prepare', lambda folder, sizes: Nothing())
    monkeypatch.setattr(main, '_enable_cache', lambda: None)
    monkeypatch.setattr(main, '_check_writable', lambda folder: None)
    monkeypatch.chdir(tmp_path)
    with compilations(caplog) as so_far:
        yield so_far
    for name in main.FLAGS:
        main.FLAGS[name].unparse()


def build(config, devices):
    """All that happens to a config before something is traced."""
    return assemble(recipe.build(config), jax.devices()[:devices])


def trace(program):
    """The steps and the sampling, from shapes alone."""
    program.trace()
    if program.recipe.sampler is not None:
        jax.eval_shape(lambda: sampled(program.recipe))


def sampled(built):
    """Two pictures of fresh networks; only ever traced."""
    params = built.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 2)
    example = recipe.blank_example(built.config['data']['resolution'])
    arrays = jax.tree.map(jnp.asarray, built.conditioner.arrays([example] * 2))
    cond = built.conditioner.embed(params, arrays, jnp.zeros(2, bool), random.fold(keys, 'embed'))
    latents = built.sampler.sample(params, Request(cond, cond, keys), built.sampler.knobs())
    return built.tokenizer.decode(params, latents)


def result(function, *arguments):
    """What it gives, or None where it is refused in one line; any other exception goes through."""
    began, given = time.monotonic(), None
    try:
        given = function(*arguments)
    except (ValueError, flags.Error) as error:
        assert str(error) and '\n' not in str(error), str(error)
    assert time.monotonic() - began < SECONDS
    return given


def check(mutations, amount, traced, compiled):
    """Run a property over mutated configs; how many were built."""
    built = []

    @amount
    @given(mutations, st.sampled_from((1, 2, 8)))
    def property(config, devices):
        program = result(build, config, devices)
        if program is not None:
            built.append(program)
            if len(built) % traced == 0:
                result(trace, program)
        assert not compiled()

    property()
    return len(built)


def test_configs_are_built_or_refused(compiled):
    assert check(mutated(), ORDINARY, TRACED, compiled) > 30


@pytest.mark.slow
def test_more_configs_are_built_or_refused(compiled):
    amount = settings(ORDINARY, max_examples=1500)
    assert check(mutated(('tiny', 'tiny', '')), amount, 1, compiled) > 100


def prepared(line):
    """What the command line does before the first job begins."""
    others = [flag for flag in line if not flag.startswith('--config.')]
    overrides = [flag.removeprefix('--config.') for flag in line if flag.startswith('--config.')]
    for name in main.FLAGS:
        main.FLAGS[name].unparse()
    main.FLAGS(['jaxgen', *others])
    options = {name: main.FLAGS[name] for name in main.OPTIONS}
    return main.prepare(main.FLAGS.config, overrides, main.FLAGS.mode, main.FLAGS.workdir, options)


def test_flags_are_taken_or_refused(compiled):
    taken = []

    @settings(ORDINARY, max_examples=150)
    @given(command_lines())
    def property(line):
        taken.append(result(prepared, line))
        assert not compiled()

    property()
    assert 10 < len([jobs for jobs in taken if jobs]) < 100
