"""Attention with tokens, heads and examples on eight devices is that of one, gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen.layers import sequence
from jaxgen.layers.attention import SelfAttention
from jaxgen.training.sharding import make_mesh

MESHES = {
    'exchanged': {'sequence': 8},
    'mixed': {'data': 2, 'tensor': 2, 'sequence': 2},
    'gathered': {'data': -1, 'sequence': 2, 'fsdp': 2},
}
B, L, M, K = 4, 32, 12, 8
# Heads of 'gathered' do not divide over its sequence.
HEADS = {'exchanged': 8, 'mixed': 4, 'gathered': 3}


def attend(q, k, v, allowed=None):
    """A local form, float32."""
    scores = jnp.einsum('blhk,bmhk->bhlm', q, k, precision='highest')
    if allowed is not None:
        scores = jnp.where(allowed, scores, -1e9)
    return jnp.einsum('bhlm,bmhk->blhk', jax.nn.softmax(scores), v, precision='highest')


def masks(keys, rng):
    """None, one for the keys, one for pairs of each example, and the causal one."""
    return {
        'none': None,
        'keys': rng.random((B, 1, 1, keys)) < 0.7,
        'pairs': rng.random((B, 1, L, keys)) < 0.7,
        'causal': np.tril(np.ones((L, keys), bool), keys - L)[None, None],
    }


def value_and_gradients(function, *arrays):
    def loss(*given):
        y = function(*given)
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, tuple(range(len(arrays))), has_aux=True))(*arrays)
    return y, gradients


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        # The gradient of a key's bias is zero but for rounding.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize('mask', ['none', 'keys', 'pairs', 'causal'])
@pytest.mark.parametrize('keys', [L, M])
@pytest.mark.parametrize('mesh', MESHES)
def test_as_on_one_device(mesh, keys, mask):
    rng, heads = np.random.default_rng(0), HEADS[mesh]
    q, k, v = (rng.normal(size=(B, n, heads, K)).astype(np.float32) for n in (L, keys, keys))
    allowed = masks(keys, rng)[mask]
    expected = value_and_gradients(lambda *qkv: attend(*qkv, allowed), q, k, v)
    with jax.set_mesh(make_mesh(MESHES[mesh])):
        assert sequence.is_split()
        found = value_and_gradients(lambda *qkv: sequence.on_shards(attend, *qkv, allowed), q, k, v)
    assert_same(found, expected)


def test_devices_hold_their_share_and_exchange_it():
    mesh = make_mesh({'sequence': 8})
    q = jax.device_put(np.ones((B, L, 8, K), np.float32), NamedSharding(mesh, P(None, 'sequence')))
    seen = []

    def local(q, k, v, allowed):
        seen.append((q.shape, k.shape))
        return attend(q, k, v, allowed)

    with jax.set_mesh(mesh):
        program = jax.jit(lambda q: sequence.on_shards(local, q, q, q)).lower(q).compile()
    assert seen == [((B, L, 1, K), (B, L, 1, K))]
    assert program.output_shardings.spec == P(None, 'sequence')
    assert 'all-to-all' in program.as_text() and 'all-gather' not in program.as_text()


def test_fewer_keys_are_gathered_and_queries_stay():
    seen = []

    def local(q, k, v, allowed):
        seen.append((q.shape[1:3], k.shape[1:3], allowed.shape))
        return attend(q, k, v, allowed)

    q, k = np.ones((B, L, 8, K), np.float32), np.ones((B, M, 8, K), np.float32)
    with jax.set_mesh(make_mesh({'tensor': 2, 'sequence': 4})):
        jax.eval_shape(lambda: sequence.on_shards(local, q, k, k, np.ones((B, 1, L, M), bool)))
    assert seen == [((L // 4, 4), (M, 4), (B, 1, L // 4, M))]


def test_without_a_mesh_or_with_what_does_not_divide_it_is_the_function_itself():
    q = np.random.default_rng(0).normal(size=(3, 5, 7, K)).astype(np.float32)
    assert not sequence.is_split()
    np.testing.assert_array_equal(sequence.on_shards(attend, q, q, q), attend(q, q, q))
    with jax.set_mesh(make_mesh({'data': 2, 'tensor': 2, 'sequence': 2})):
        np.testing.assert_array_equal(sequence.on_shards(attend, q, q, q), attend(q, q, q))


@pytest.mark.parametrize('compress', [1, 2])
@pytest.mark.parametrize('mesh', ['mixed', 'exchanged'])
def test_the_layer_with_normalised_and_compressed_keys(mesh, compress):
    """Under rematerialisation, as a block runs it."""
    x = np.random.default_rng(0).normal(size=(B, 64, 64)).astype(np.float32)
    layer = SelfAttention(8, qk_norm=True, compress=compress)
    params = layer.init(jax.random.key(0), x, grid=(8, 8))

    @jax.checkpoint
    def apply(params, x):
        return layer.apply(params, x, grid=(8, 8))

    expected = value_and_gradients(apply, params, x)
    with jax.set_mesh(make_mesh(MESHES[mesh])):
        found = value_and_gradients(apply, params, x)
    assert_same(found, expected)
