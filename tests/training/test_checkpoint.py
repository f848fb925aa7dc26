"""Checkpoints: exact, whole or absent, and free of the mesh and the cut they were written with."""

import os
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
from jaxgen.training import checkpoint, sharding


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
        assert checkpoints.record(12)['fingerprint'] == checkpoint.fingerprint(states[12])
        with pytest.raises(ValueError, match='already holds step 12'):
            checkpoints.save(12, states[12])
        with pytest.raises(ValueError, match=r'no step 11; it has \[10, 12, 13\]'):
            checkpoints.restore(11, abstract)


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
    state = {'kernel': jnp.arange(2.0**20)}
    double = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree), donate_argnums=0)
    with checkpoint.Checkpoints(tmp_path, fingerprints=False) as checkpoints:
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
        assert checkpoints.record(3)['fingerprint'] == checkpoint.fingerprint(restored)
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


def test_fingerprint_sees_every_change():
    state = make_state()
    first = checkpoint.fingerprint(state)
    assert first == checkpoint.fingerprint(make_state(lengths=(1, 3)))
    assert first != checkpoint.fingerprint(make_state(seed=1))
    assert first != checkpoint.fingerprint(dict(state, step=jnp.asarray(7, jnp.int16)))
    assert first != checkpoint.fingerprint({'other': state['step'], **state})
    flat = {'a': jnp.ones((2, 3))}
    assert checkpoint.fingerprint(flat) != checkpoint.fingerprint({'a': jnp.ones((3, 2))})
    mesh = sharding.make_mesh({'fsdp': 8})
    split = {'a': jax.device_put(jnp.ones((8, 3)), NamedSharding(mesh, P('fsdp')))}
    assert checkpoint.fingerprint(split) == checkpoint.fingerprint({'a': np.ones((8, 3), np.float32)})
