"""A cache: made, stopped, gone on with; and training on it is training on the pictures it was made of."""

import functools
import itertools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nouns import tiny

from jaxgen import recipe
from jaxgen.data.pipeline import batches
from jaxgen.jobs import cache, train
from jaxgen.keys import split_examples
from jaxgen.program import assemble

VAE = {'name': 'kl_vae', 'widths': (4, 4), 'blocks': 1, 'groups': 2, 'middle_attention': False}
DIT = {'name': 'dit', 'hidden': 16, 'depth': 1, 'heads': 1, 'patch': 2}
T5 = {
    'name': 't5',
    'vocabulary': 384,
    'width': 8,
    'ff': 8,
    'depth': 1,
    'heads': 1,
    'head_width': 8,
    'length': 9,
}
FLOW = {
    'tokenizer': VAE,
    'conditioner': {'name': 'labels', 'classes': 4},
    'model': DIT,
    'path': {'name': 'linear'},
    'prediction': {'output': 'velocity'},
    'held_out': {'split': 'test'},
    'sampler': {'name': 'diffusion', 'solver': {'name': 'euler'}, 'steps': 1, 'guidance': 2.0},
    'train': {'steps': 2, 'save_every': 2, 'flip': True, 'threads': 1},
}
TEXT = {
    **FLOW,
    'data': {'captions': True, 'classes': None},
    'conditioner': {**T5, 'empty_null': True, 'sizes': True},
    'model': {**DIT, 'name': 'pixart', 'hidden': 24},
}
PIXELS = {**FLOW, 'tokenizer': {'name': 'pixels'}, 'model': {**DIT, 'patch': 4}}
CODES = {
    'tokenizer': {
        'name': 'vqgan',
        **{'widths': (4, 4), 'blocks': 1, 'groups': 2, 'attention': (), 'middle_attention': False},
        'bottleneck': {'name': 'residual', 'codes': 16, 'channels': 4, 'scales': (1, 2, 4)},
    },
    'conditioner': {'name': 'labels', 'classes': 4},
    'model': {'name': 'var', 'hidden': 16, 'depth': 1, 'heads': 1},
    'objective': {'name': 'next_scale'},
    'held_out': {'split': 'test'},
    'sampler': {'name': 'autoregressive', 'order': {'name': 'next_scale'}},
    'train': FLOW['train'],
}
KINDS = {'labels': FLOW, 'text': TEXT, 'pixels': PIXELS, 'codes': CODES}
# What no step on a cache runs; codes are made of what lies in it.
SPARED = {'labels': {'tokenizer'}, 'text': {'tokenizer', 'text'}, 'pixels': set(), 'codes': set()}
EXACT = {'cache_dtype': 'float32'}


@pytest.fixture(scope='module', autouse=True)
def two_devices():
    """Two are a mesh as well, and compile sooner than eight."""
    with pytest.MonkeyPatch.context() as patch:
        for job in (cache, train):
            patch.setattr(job, 'assemble', functools.partial(assemble, devices=jax.devices()[:2]))
        yield


def sections(kind, **data):
    """A config's sections, whole."""
    changed = KINDS[kind]
    made = {
        **tiny.SECTIONS,
        **{name: {**tiny.SECTIONS.get(name, {}), **one} for name, one in changed.items()},
    }
    for name in ('tokenizer', 'conditioner'):
        made[name] = changed.get(name, made[name])
    return {**made, 'data': {**made['data'], **data}}


@pytest.fixture(scope='module')
def made(two_devices, tmp_path_factory):
    """The folder of a kind's cache, three examples a shard, made once."""
    known = {}

    def folder(kind):
        if kind not in known:
            known[kind] = tmp_path_factory.mktemp(kind) / 'cache'
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cache, 'MOST', 3)
                cache.run(recipe.build(sections(kind, **EXACT)), str(known[kind]))
        return known[kind]

    return folder


def on(folder, kind, **data):
    return recipe.build(sections(kind, **{**EXACT, 'cache': str(folder), **data}))


def losses(built, params, count=3):
    """Of the first steps' batches, with no parameters that a step would not have."""
    networks = {name: tree for name, tree in params.items() if name not in built.spared}
    loss = jax.jit(built.objective.phases[0].loss)
    source = batches(
        built.source('train'), built.conditioner.arrays, seed=0, batch=8, flip=built.train.flip, threads=0
    )
    keys = split_examples(jax.random.key(1), jnp.arange(8))
    found = []
    for batch in itertools.islice(source, count):
        total, weight, _, metrics = loss({}, {}, {'networks': networks}, batch, keys, 0)
        found.append([total / weight, *(value for value, _ in metrics.values())])
    return np.asarray(found)


@pytest.mark.parametrize('kind', KINDS)
def test_losses_on_the_cache_are_those_on_the_pictures(made, kind):
    pictures, cached = recipe.build(sections(kind)), on(made(kind), kind)
    params = tiny.randomised(pictures)
    params |= assemble(pictures).frozen(pictures.encoders)['networks']  # as the cache was made by
    assert set(cached.spared) == SPARED[kind]
    np.testing.assert_allclose(losses(cached, params), losses(pictures, params), rtol=1e-5, atol=1e-6)


def test_a_run_on_the_cache_is_the_run_on_the_pictures(made, tmp_path):
    kind = 'text'
    changes = {'held_out_every': 2, 'held_out_batches': 1, 'sample_every': 2}
    records = []
    for name, data in (('pictures', {}), ('cached', {**EXACT, 'cache': str(made(kind))})):
        given = sections(kind, **data)
        built = recipe.build({**given, 'train': {**given['train'], **changes}})
        train.check(built)
        records.append(train.run(built, str(tmp_path / name))['metrics'])
    assert records[0].keys() == records[1].keys()
    for name, value in records[0].items():
        np.testing.assert_allclose(records[1][name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert (tmp_path / 'cached' / 'pictures' / '0000002.png').exists()


@pytest.mark.parametrize('kind', ['labels', 'text'])
def test_a_step_is_planned_without_the_data_and_without_what_made_them(kind):
    program = assemble(on('nowhere', kind, cache_dtype='float16'))
    state, frozen, batch, _, _ = program.abstract_arguments()
    assert not frozen['networks'] and set(state.params) == {'model'}
    assert batch['moments'].shape == (8, 4, 4, 8) and batch['moments'].dtype == np.float16
    if kind == 'text':
        assert batch['text'].shape == (8, 9, 8) and 'text_ids' not in batch and 'image' not in batch
    program.trace()


def test_planned_batch_is_the_batch(made):
    for kind in KINDS:
        built = on(made(kind), kind)
        read = next(batches(built.source('train'), built.conditioner.arrays, seed=0, batch=8, threads=0))
        planned = assemble(built).abstract_arguments()[2]
        assert {k: (v.shape, v.dtype) for k, v in read.items()} == {
            k: (v.shape, v.dtype) for k, v in planned.items()
        }


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != 'manifest.json'}


def test_stopped_it_goes_on_and_ends_the_same(made, tmp_path, monkeypatch):
    built, folder = recipe.build(sections('labels', **EXACT)), tmp_path / 'cache'
    monkeypatch.setattr(cache, 'MOST', 3)
    write, left = cache.Writer.write, iter(range(5))

    def stops(self, *arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache.Writer, 'write', stops)
        cache.run(built, str(folder))
    assert [path.name for path in folder.glob('*.array_record')] == ['train-00000-of-00003.array_record']
    with pytest.raises(ValueError, match='is unfinished; the command that began it goes on'):
        on(folder, 'labels').source('train')
    with pytest.raises(ValueError, match="holds a cache of something else: .*'float32' there and 'float16'"):
        cache.run(recipe.build(sections('labels')), str(folder))
    first = (folder / 'train-00000-of-00003.array_record').stat().st_mtime_ns
    cache.run(built, str(folder))
    assert (folder / 'train-00000-of-00003.array_record').stat().st_mtime_ns == first
    assert files(folder) == files(made('labels'))
    assert json.loads((folder / 'manifest.json').read_text()) == json.loads(
        (made('labels') / 'manifest.json').read_text()
    )


def test_damage_is_seen_and_mended(made, tmp_path, monkeypatch):
    folder = tmp_path / 'cache'
    shutil.copytree(made('labels'), folder)
    shard = folder / 'train-00001-of-00003.array_record'
    whole = shard.read_bytes()
    place = whole.index(np.float32(on(folder, 'labels').source('train')[4]['moments'][1, 1, 1]).tobytes())
    shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(Exception, match='(?i)hash|corrupt|checksum|invalid'):
        on(folder, 'labels').source('train')[4]
    shard.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match='train-00001-of-00003.array_record is missing or cut off'):
        on(folder, 'labels').source('train')
    monkeypatch.setattr(cache, 'MOST', 3)
    cache.run(recipe.build(sections('labels', **EXACT)), str(folder))
    assert shard.read_bytes() == whole


@pytest.mark.parametrize(
    'kind, section, changes, message',
    [
        ('labels', 'tokenizer', {'scale': 1.0}, r'tokenizer.network.scale is 0.18215 there and 1.0 here'),
        ('labels', 'tokenizer', {'sample': False}, r'encoding.tokenizer.sample is True there and False here'),
        ('labels', 'data', {'cache_dtype': 'float16'}, r"encoding.dtype is 'float32' there and 'float16'"),
        ('labels', 'data', {'examples': 9}, r'a cache of other data: the data.data.examples is 8 there'),
        ('labels', 'data', {'resolution': 16}, r'the data.data.resolution is 8 there and 16 here'),
        ('text', 'conditioner', {'length': 8}, r'encoding.text.length is 9 there and 8 here'),
        ('text', 'conditioner', {'clean': False}, r'encoding.text.clean is True there and False here'),
    ],
)
def test_another_encoding_is_refused(made, kind, section, changes, message):
    given = sections(kind, **EXACT, cache=str(made(kind)))
    given[section] = {**given[section], **changes}
    with pytest.raises(ValueError, match=message):
        recipe.build(given).source('train')


def test_other_weights_are_refused(made):
    given = sections('labels', **EXACT, cache=str(made('labels')))
    train.check(recipe.build(given))
    given['train'] = {**given['train'], 'seed': 1}
    with pytest.raises(
        ValueError, match="the network 'tokenizer' from seed 0, and this recipe has it from seed 1"
    ):
        train.check(recipe.build(given))


def test_mirror_images_are_refused_where_none_were_made(made):
    built = on(made('labels'), 'labels')
    with pytest.raises(ValueError, match='set train.flip=False, or make one with train.flip=True'):
        built.source('held_out').mirrored(0)


def test_what_makes_no_cache_is_refused(made, tmp_path):
    with pytest.raises(ValueError, match='data.cache is what training reads'):
        cache.check(on(made('labels'), 'labels'), str(tmp_path))
    with pytest.raises(ValueError, match='to a local or mounted disk; gs://bucket'):
        cache.check(recipe.build(sections('labels')), 'gs://bucket/cache')


def test_half_precision_is_near(made, tmp_path):
    cache.run(recipe.build(sections('labels')), str(tmp_path))
    exact = on(made('labels'), 'labels').source('train')
    near = on(tmp_path, 'labels', cache_dtype='float16').source('train')
    for row in range(len(exact)):
        wanted, found = (np.float32(one[row]['moments']) for one in (exact, near))
        assert np.abs(found - wanted).max() <= 5e-4 * np.abs(wanted).max()


@pytest.mark.slow
def test_two_processes_make_the_cache_that_one_makes(made, tmp_path):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    tests = pathlib.Path(__file__).parents[1]
    places = (tests.parent, tests, tests / 'jobs')
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(map(str, places))}
    command = [sys.executable, str(tests / 'jobs' / 'cache_processes.py')]
    running = [
        subprocess.Popen([*command, str(number), str(port), str(tmp_path)], env=environment)
        for number in range(2)
    ]
    try:
        assert [process.wait(900) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in made('text').iterdir()}
    one, two = (on(folder, 'text').source('train') for folder in (made('text'), tmp_path))
    for row in range(len(one)):
        for name, array in one[row].items():
            if isinstance(array, np.ndarray):
                np.testing.assert_allclose(two[row][name], array, atol=1e-5)
            else:
                assert two[row][name] == array
