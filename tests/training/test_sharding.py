"""The mesh, the placement rules and the batches on eight devices."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxgen.training import sharding


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, np.float32)


def specs(tree, rules, mesh):
    return jax.tree.map(lambda placed: placed.spec, sharding.place(tree, rules, mesh))


def test_mesh_fills_one_axis_with_what_remains():
    mesh = sharding.make_mesh({'fsdp': -1, 'tensor': 2})
    assert dict(mesh.shape) == {'data': 1, 'fsdp': 4, 'tensor': 2, 'sequence': 1}
    assert dict(sharding.make_mesh({}, jax.devices()[:1]).shape) == dict.fromkeys(sharding.AXES, 1)


@pytest.mark.parametrize(
    ('shape', 'sentence'),
    [
        ({'data': 3}, 'does not fit 8 devices'),
        ({'data': 3, 'fsdp': -1}, 'does not fit 8 devices'),
        ({'data': -1, 'fsdp': -1}, '8 devices can fill only one'),
        ({'fdsp': 8}, "nearest .* is 'fsdp'"),
        ({'data': 0}, 'size 0'),
    ],
)
def test_mesh_refuses_what_does_not_fit(shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        sharding.make_mesh(shape)


def test_default_splits_the_output_dimension_and_never_the_layers():
    mesh = sharding.make_mesh({'fsdp': 8})
    tree = {
        'stack': {
            '0': {
                'kernel': shape(2, 128, 256),
                'odd': shape(2, 1024, 30),
                'none': shape(8, 377, 51),
                'bias': shape(28, 1152),
            }
        },
        'kernel': shape(64, 512),
        'odd': shape(1024, 30),
        'bias': shape(512),
    }
    placed = specs(tree, (), mesh)
    assert placed['stack']['0'] == {
        'kernel': P(None, None, 'fsdp'),
        'odd': P(None, 'fsdp', None),
        'none': P(),
        'bias': P(),
    }
    assert placed['kernel'] == P(None, 'fsdp')
    assert placed['odd'] == P('fsdp', None)
    assert placed['bias'] == P()


def test_first_matching_rule_decides_stacked_or_not():
    mesh = sharding.make_mesh({'fsdp': 4, 'tensor': 2})
    rules = [
        ('query/kernel', ('fsdp', 'tensor')),
        ('kernel', (('fsdp', 'tensor'), None)),
    ]
    tree = {'stack': {'0': {'query': {'kernel': shape(3, 8, 8)}}}, 'query': {'kernel': shape(8, 8)}}
    tree['key'] = {'kernel': shape(8, 8)}
    placed = specs(tree, rules, mesh)
    assert placed['stack']['0']['query']['kernel'] == P(None, 'fsdp', 'tensor')
    assert placed['query']['kernel'] == P('fsdp', 'tensor')
    assert placed['key']['kernel'] == P(('fsdp', 'tensor'), None)


@pytest.mark.parametrize('name', ['adamw', 'adafactor'])
def test_optimizer_state_follows_its_parameter(name):
    mesh = sharding.make_mesh({'fsdp': 4, 'tensor': 2})
    params = {'query': {'kernel': shape(256, 512)}, 'stack': {'0': {'kernel': shape(4, 256, 512)}}}
    state = jax.eval_shape(getattr(optax, name)(1e-3).init, params)
    placed = sharding.place(state, [('query/kernel', ('tensor', None))], mesh)
    for leaf, where in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True):
        if leaf.shape == (256, 512):
            assert where.spec == P('tensor', None)
        assert np.prod(where.shard_shape(leaf.shape)) <= np.prod(leaf.shape)
    zeros = jax.jit(
        lambda: jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape), state), out_shardings=placed
    )()
    if name == 'adamw':
        assert zeros[0].mu['query']['kernel'].addressable_shards[0].data.shape == (128, 512)


@pytest.mark.parametrize(
    ('rule', 'sentence'),
    [
        (('kernel', ('fsdp', None)), r"model/kernel.*\(6, 8\).*6 does not divide.*'fsdp'"),
        (('kernel', ('fdsp', None)), "names axis 'fdsp'"),
        (('kernel', ('fsdp', 'fsdp')), 'twice'),
        (('stack', ('fsdp', None, None)), 'layer axis'),
    ],
)
def test_bad_rules_are_refused(rule, sentence):
    tree = {'model': {'kernel': shape(6, 8), 'stack': {'0': {'weight': shape(8, 8, 8)}}}}
    with pytest.raises(ValueError, match=sentence):
        sharding.place(tree, [rule], sharding.make_mesh({'fsdp': 8}))


def test_batch_is_split_copied_and_whole():
    mesh = sharding.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
    rows = np.arange(8 * 4, dtype=np.float32).reshape(8, 4)
    batch = {'image': rows, 'label': np.arange(8)}
    placed = sharding.to_global(batch, mesh)
    expected = rows.copy()
    rows[:] = -1
    np.testing.assert_array_equal(placed['image'], expected)
    assert placed['image'].addressable_shards[0].data.shape == (2, 4)
    np.testing.assert_array_equal(sharding.local_rows(mesh, 8), range(8))
    with pytest.raises(ValueError, match="'label'.*4 batch shards"):
        sharding.to_global({'label': np.arange(6)}, mesh)
    with pytest.raises(ValueError, match='batch of 6'):
        sharding.local_rows(mesh, 6)
