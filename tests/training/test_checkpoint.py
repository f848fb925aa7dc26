"""Checkpoints: exact, whole or absent, and free of the mesh and the cut they were written with."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxgen
from jaxgen.training import checkpoint, digest, record, sharding

# Of reads that fail together the first is raised; what the others say then is no news.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def make_state(lengths=(4,), seed=0):
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    kernel = jax.random.normal(next(keys), (sum(lengths), 8, 16))
    bounds = np.cumsum((0, *lengths))
    stack = {str(i): {'kernel': kernel[bounds[i] : bounds[i + 1]]} for i in range(len(lengths))}
    params = {'model': {'stack': stack, 'bias': jnp.arange(5.0)}}
    optimizer = optax.adamw(1e-3).init(params)
    optimizer = jax.tree.map(lambda leaf: leaf + 1, optimizer)
    return {'params': params, 'optimizer': optimizer, 'step': jnp.asarray(7, jnp.int32)}


def equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_round_trip_is_exact_and_keeps_what_was_asked(tmp_path):
    with checkpoint.Checkpoints(tmp_path / 'run', keep=2, keep_period=10) as checkpoints:
        assert checkpoints.latest() is None
        states = {step: make_state(seed=step) for step in (10, 11, 12, 13)}
        for step, state in states.items():
            checkpoints.save(step, state, {'images': step * 4})
        checkpoints.wait()
        assert checkpoints.steps() == [10, 12, 13] and checkpoints.latest() == 13
        abstract = jax.eval_shape(lambda: states[10])
        equal(checkpoints.restore(None, abstract), states[13])
        equal(checkpoints.restore(10, abstract), states[10])
        assert checkpoints.metadata(12) == {'images': 48}
        assert checkpoints.record(12)['fingerprint'] == digest.fingerprint(states[12])
        with pytest.raises(ValueError, match='already holds step 12'):
            checkpoints.save(12, states[12])
        with pytest.raises(ValueError, match=r'no step 11; it has \[10, 12, 13\]'):
            checkpoints.restore(11, abstract)


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
    state = {'kernel': jnp.arange(2.0**20)}
    double = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree), donate_argnums=0)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(4):
            state = double(state)
        checkpoints.wait()
        restored = checkpoints.restore(1, {'kernel': jax.ShapeDtypeStruct((2**20,), jnp.float32)})
    np.testing.assert_array_equal(restored['kernel'], np.arange(2.0**20, dtype=np.float32))


def test_another_mesh_and_another_cut_restore_the_same(tmp_path):
    mesh = sharding.make_mesh({'fsdp': 8})
    state = make_state(lengths=(4,))
    split = jax.tree.map(
        lambda leaf: NamedSharding(mesh, P(None, 'fsdp', None) if leaf.ndim == 3 else P()), state
    )
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, jax.device_put(state, split))
        other = sharding.make_mesh({'data': 2, 'tensor': 4})
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape,
                leaf.dtype,
                sharding=NamedSharding(other, P(None, None, 'tensor') if leaf.ndim == 3 else P()),
            ),
            make_state(lengths=(1, 3)),
        )
        restored = checkpoints.restore(3, abstract)
        assert checkpoints.record(3)['fingerprint'] == digest.fingerprint(restored)
    kernel = restored['params']['model']['stack']['1']['kernel']
    assert kernel.sharding == abstract['params']['model']['stack']['1']['kernel'].sharding
    assert kernel.addressable_shards[0].data.shape == (3, 8, 4)
    equal(jax.device_get(restored), jax.device_get(make_state(lengths=(1, 3))))


def test_precision_and_parts_may_be_chosen(tmp_path):
    state = make_state()
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    reader = checkpoint.Checkpoints(tmp_path, read_only=True)
    part = {
        'params': jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), state['params'])
    }
    restored = reader.restore(None, part, partial=True)
    equal(restored['params'], jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state['params']))
    with pytest.raises(ValueError, match='reading only'):
        reader.save(2, state)


def test_another_run_is_refused_by_name(tmp_path):
    state = make_state()
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        wanted = jax.eval_shape(lambda: make_state())
        model = wanted['params']['model']
        model['norm'] = jax.ShapeDtypeStruct((3,), jnp.float32)
        model['bias'] = jax.ShapeDtypeStruct((6,), jnp.float32)
        del wanted['optimizer']
        with pytest.raises(ValueError) as error:
            checkpoints.restore(1, wanted)
        message = str(error.value)
        assert 'missing (1): params/model/norm' in message
        assert 'misshapen (1): params/model/bias (stored float32[5], wanted float32[6])' in message
        assert 'unexpected' in message and 'optimizer/0/mu/model/bias' in message
        wanted = dict(state, step=jnp.asarray(7.0))
        with pytest.raises(ValueError, match='misshapen.*step'):
            checkpoints.restore(1, wanted)


def test_an_empty_or_foreign_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match='no checkpoint directory'):
        checkpoint.Checkpoints(tmp_path / 'none', read_only=True)
    with checkpoint.Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match='no checkpoint'):
        checkpoints.restore(None, {})
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(5, args=ocp.args.StandardSave({'a': jnp.ones(2)}))
    reader = checkpoint.Checkpoints(tmp_path, read_only=True)
    with pytest.raises(ValueError, match='not written by jaxgen'):
        reader.restore(5, {'a': jax.ShapeDtypeStruct((2,), jnp.float32)})


def test_a_kill_in_the_middle_of_a_save_leaves_the_last_whole_step(tmp_path):
    program = textwrap.dedent(
        """
        import os, signal, sys

        import jax.numpy as jnp
        from jaxgen.training.checkpoint import Checkpoints

        checkpoints = Checkpoints(sys.argv[1], asynchronous=False)
        checkpoints.save(1, {'a': jnp.ones(4)})
        os.rename = os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
        checkpoints.save(2, {'a': jnp.zeros(4)})
        """
    )
    environment = {**os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': str(Path(jaxgen.__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, '-c', program, str(tmp_path)], env=environment, capture_output=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert any(name.startswith('2') for name in left), left
    wanted = {'a': jax.ShapeDtypeStruct((4,), jnp.float32)}
    reader = checkpoint.Checkpoints(tmp_path, read_only=True)
    assert reader.latest() == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        np.testing.assert_array_equal(checkpoints.restore(None, wanted)['a'], 1.0)
        checkpoints.save(2, {'a': jnp.zeros(4)})
        checkpoints.wait()
        assert checkpoints.latest() == 2


def large(leaf):
    """An array whose bytes lie in a file of their own, not in the index."""
    return {'params': {'kernel': jnp.arange(2.0**14) + leaf, 'bias': jnp.arange(2.0**14) - leaf}}


def chunk(folder):
    """The file that holds most of a checkpoint's arrays."""
    files = (path for path in (folder / 'state').rglob('*') if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def flip(path):
    """One bit of a file, in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


HARMS = {
    'a truncated array': (lambda step: halve(chunk(step)), 'cannot be read'),
    'a deleted chunk': (lambda step: chunk(step).unlink(), 'cannot be read'),
    'a chunk of another step': (
        lambda step: shutil.copytree(step.parent / '1' / 'state', step / 'state', dirs_exist_ok=True),
        'params/bias (and 1 more) is not what was written',
    ),
    'no index': (lambda step: (step / 'state' / 'manifest.ocdbt').unlink(), 'params/bias cannot be read'),
    'a broken tree': (lambda step: halve(step / 'state' / '_METADATA'), 'params/bias cannot be read'),
    'a truncated record': (lambda step: halve(step / 'record' / 'metadata'), 'its record cannot be read'),
    'a record with another number': (
        lambda step: (step / 'record' / 'metadata').write_text(
            (step / 'record' / 'metadata').read_text().replace('16384', '16385')
        ),
        'its record is not what was written',
    ),
    'no record': (lambda step: shutil.rmtree(step / 'record'), "it has no 'record' folder"),
}


@pytest.mark.parametrize('harm', HARMS)
def test_a_damaged_step_is_named_and_the_one_before_is_used(tmp_path, harm, caplog, monkeypatch):
    monkeypatch.setattr(checkpoint.log, 'propagate', True)
    damage, said = HARMS[harm]
    abstract = jax.eval_shape(lambda: large(0))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, large(1), {'step': 1})
        checkpoints.save(2, large(2), {'step': 2})
    damage(tmp_path / '2')
    reader = checkpoint.Checkpoints(tmp_path, read_only=True)
    step, tree = reader.restore_last(abstract)
    assert step == 1 and reader.steps() == [1, 2]
    assert reader.last_record()[0] == (1 if 'record' in harm else 2)
    equal(tree, large(1))
    with pytest.raises(checkpoint.Damaged, match='/2 '):
        reader.restore(2, abstract)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        step, tree = checkpoints.restore_last(abstract)
        assert step == 1 and checkpoints.steps() == [1] and (tmp_path / '2.damaged').is_dir()
        equal(tree, large(1))
        checkpoints.save(2, large(2))
        step, tree = checkpoints.restore_last(abstract)
        assert step == 2
        equal(tree, large(2))
    read, moved = (record.message for record in caplog.records if record.name == 'jaxgen')
    assert said in read and 'Step 1 is used instead' in read and not read.endswith('2.damaged.')
    assert said in moved and 'Step 1 is used instead' in moved and moved.endswith('2.damaged.')


def test_where_all_are_damaged_nothing_begins_anew(tmp_path):
    abstract = jax.eval_shape(lambda: large(0))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, large(step))
        checkpoints.wait()
        for step in (1, 2):
            chunk(tmp_path / str(step)).unlink()
        with pytest.raises(checkpoint.Damaged, match='/2 is damaged.*/1 is damaged.*another workdir'):
            checkpoints.restore_last(abstract)
        assert checkpoints.steps() == [1, 2]


def test_what_may_not_be_used_is_no_damage(tmp_path, monkeypatch):
    """Another config, another tree or another layout is refused, and no earlier step is taken for it."""

    def refuse(metadata):
        if metadata['step'] == 2:
            raise ValueError('not this one')

    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, large(step), {'step': step})
        with pytest.raises(ValueError, match='not this one'):
            checkpoints.restore_last(jax.eval_shape(lambda: large(0)), accept=refuse)
        with pytest.raises(ValueError, match='does not fit this run; missing .1.: params/other'):
            checkpoints.restore_last({'params': {'other': jnp.ones(3)}}, partial=True)
        monkeypatch.setattr(record, 'LAYOUT', record.LAYOUT + 1)
        with pytest.raises(ValueError, match=r'layout 2, jaxgen .* reads layout 3; use the version'):
            checkpoints.restore_last(jax.eval_shape(lambda: large(0)))
        assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize('asynchronous', [False, True])
def test_a_save_that_fails_costs_nothing_but_itself(tmp_path, asynchronous):
    with checkpoint.Checkpoints(tmp_path, asynchronous=asynchronous) as checkpoints:
        checkpoints.save(1, large(1))
        checkpoints.wait()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(checkpoint.SaveFailed, match='step 2 could not be saved.*File too large'):
                checkpoints.save(2, large(2))
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert checkpoints.steps() == [1]
        checkpoints.save(3, large(3))
        step, tree = checkpoints.restore_last(jax.eval_shape(lambda: large(0)))
        assert step == 3 and sorted(path.name for path in tmp_path.iterdir()) == ['1', '3']
        equal(tree, large(3))


def test_configs_differ_where_it_matters():
    config = {
        'data': {'name': 'folder', 'path': '/one'},
        'model': {'name': 'dit', 'depth': 2, 'remat': 'none'},
        'optimizer': {'betas': (0.9, 0.95)},
        'train': {'steps': 10, 'batch': 8, 'threads': 2},
    }
    stored = json.loads(json.dumps(config))
    harmless = {
        **config,
        'data': {'name': 'folder', 'path': '/two'},
        'model': {'name': 'dit', 'depth': 2, 'remat': 'full'},
        'train': {'steps': 20, 'batch': 8, 'threads': 0},
        'sampler': {'steps': 3},
    }
    assert record.differences(stored, config) == record.differences(stored, harmless) == ''
    other = {**config, 'model': {'name': 'dit', 'depth': 3, 'heads': 4}, 'train': {'batch': 16}}
    assert record.differences(stored, other) == (
        'model.depth (was 2, is 3), model.heads (was not set, is 4), train.batch (was 8, is 16)'
    )


def test_fingerprint_sees_every_change():
    state = make_state()
    first = digest.fingerprint(state)
    assert first == digest.fingerprint(make_state(lengths=(1, 3)))
    assert first != digest.fingerprint(make_state(seed=1))
    assert first != digest.fingerprint(dict(state, step=jnp.asarray(7, jnp.int16)))
    assert first != digest.fingerprint({'other': state['step'], **state})
    flat = {'a': jnp.ones((2, 3))}
    assert digest.fingerprint(flat) != digest.fingerprint({'a': jnp.ones((3, 2))})
    mesh = sharding.make_mesh({'fsdp': 8})
    split = {'a': jax.device_put(jnp.ones((8, 3)), NamedSharding(mesh, P('fsdp')))}
    assert digest.fingerprint(split) == digest.fingerprint({'a': np.ones((8, 3), np.float32)})
