"""Loading: into shardings and dtypes, lazily, and with no more memory than the arrays themselves."""

import full_size
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from golden import seeded
from jax.sharding import NamedSharding, PartitionSpec

from jaxgen.training.sharding import make_mesh
from jaxgen.weights import loading
from jaxgen.weights.names import MATRIX, SAME, NameMap, Row, entries, linear, match, to_jaxgen

WIDTH, DEPTH = 24, 3
TABLE = NameMap(
    (
        *linear('layers.{i}.qkv', *(f'stack/{{i}}/{name}' for name in ('query', 'key', 'value'))),
        Row('table.weight', ('table',), SAME),
        Row('out.weight', ('out/kernel',), MATRIX),
        Row('scale', ('scale',), SAME),
    )
)


def published(dtype=np.float32):
    shapes = {'table.weight': (40, WIDTH), 'out.weight': (16, WIDTH), 'scale': ()}
    for i in range(DEPTH):
        shapes |= {
            f'layers.{i}.qkv.weight': (3 * WIDTH, WIDTH),
            f'layers.{i}.qkv.bias': (3 * WIDTH,),
        }
    return {name: np.asarray(array, dtype) for name, array in seeded.weights(shapes).items()}


def placed(tree, mesh, split):
    """Shapes and shardings: the last axis over one mesh axis, or every array whole."""

    def like(leaf):
        spec = PartitionSpec(*[None] * (leaf.ndim - 1), split) if leaf.ndim else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(like, tree)


@pytest.mark.parametrize('split', [None, 'fsdp', ('fsdp', 'tensor')])
def test_sharded_equals_unsharded(split):
    arrays = published()
    tree = to_jaxgen(TABLE, arrays)
    like = placed(tree, make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}), split)
    sharded = to_jaxgen(TABLE, arrays, like)
    for leaf, wanted, ours in zip(*map(jax.tree.leaves, (sharded, like, tree))):
        assert isinstance(leaf, jax.Array) and leaf.sharding == wanted.sharding
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, ours[shard.index])
    back = {entry.name: entry.make() for entry in entries(TABLE, sharded)}
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


def test_leaves_are_cast_as_they_are_copied():
    tree = to_jaxgen(TABLE, published(ml_dtypes.bfloat16))
    assert tree['stack']['0']['query']['kernel'].dtype == ml_dtypes.bfloat16
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32), tree)
    up = to_jaxgen(TABLE, published(ml_dtypes.bfloat16), like)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.float32(b)), up, tree)
    assert {leaf.dtype for leaf in jax.tree.leaves(up)} == {np.dtype(np.float32)}
    for entry in entries(TABLE, up, 'bfloat16'):
        assert entry.dtype == entry.make().dtype == jnp.bfloat16


def test_replicas_share_no_fate():
    """Devices of one host may hold one buffer; an update in place must not reach through it."""
    mesh = make_mesh({'data': -1})
    arrays = published()
    like = placed(to_jaxgen(TABLE, arrays), mesh, None)
    kernel = to_jaxgen(TABLE, arrays, like)['out']['kernel']
    update = jax.jit(lambda a: a + jax.lax.axis_index('data'), donate_argnums=0)
    updated = jax.jit(
        jax.shard_map(update, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec('data')),
        donate_argnums=0,
    )(kernel)
    expected = [arrays['out.weight'].T + device for device in range(len(jax.devices()))]
    np.testing.assert_array_equal(updated, np.concatenate(expected))
    np.testing.assert_array_equal(arrays['out.weight'], published()['out.weight'])


def test_nothing_is_copied_to_look():
    arrays = published()
    sources = match(TABLE, arrays).sources
    for path, source in sources.items():
        assert np.shares_memory(source.read(), arrays[source.name]), path
    third = sources['stack/1/key/kernel'].read()
    np.testing.assert_array_equal(third, arrays['layers.1.qkv.weight'][WIDTH : 2 * WIDTH].T)


def test_faults_are_found_before_any_array_is_read(monkeypatch):
    arrays = published()
    like = jax.eval_shape(lambda: to_jaxgen(TABLE, arrays))
    arrays['scale'] = np.zeros(3, np.float32)
    monkeypatch.setattr(loading, '_buffer', lambda *_: pytest.fail('an array was filled'))
    with pytest.raises(ValueError, match=r'scale: becomes \(3,\)'):
        to_jaxgen(TABLE, arrays, like)


def test_transposed_copies_of_any_size():
    for shape in ((1, 1), (17, 5), (100, 33)):
        a = seeded.normal('a', shape)
        out = np.empty(shape[::-1], np.float32)
        loading._copy(out, a.T)
        np.testing.assert_array_equal(out, a.T)


def test_an_export_fetches_a_layer_at_a_time():
    leaf = jnp.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(loading.fetched(leaf, 1), np.arange(12, 24).reshape(3, 4))
    whole = loading.fetched(leaf, None)
    assert leaf._npy_value is None, 'jax keeps a copy on the host as long as the array'
    np.testing.assert_array_equal(whole, leaf)


def test_memory_is_that_of_the_arrays(tmp_path):
    found = full_size.apart('pixart-small', tmp_path)
    assert found['arrays'] > 3e8
    assert found['peak'] <= 1.15 * found['arrays'] + found['largest'], found
    assert found['peak'] >= 0.9 * found['arrays'], 'the measure itself has to see the arrays'
