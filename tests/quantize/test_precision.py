"""Networks kept in bfloat16 and int8: how far they are off, and what of them is quantized."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models import dit, pixart
from jaxgen.quantize import precision


def random_like(tree, key):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([0.2 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves)])


def network(name):
    x, t = jax.random.normal(jax.random.key(1), (2, 8, 8, 4)), jnp.array([0.3, 0.8])
    if name == 'dit':
        module = dit.build(hidden=64, depth=3, heads=4, patch=2, classes=10)
        cond = {'label': jnp.array([1, 2]), 'drop': jnp.zeros(2, bool)}
    else:
        module = pixart.build(hidden=64, depth=3, heads=4, patch=2, caption_width=16, caption_length=5)
        text = jax.random.normal(jax.random.key(2), (2, 5, 16))
        cond = {
            'text': text,
            'text_mask': jnp.arange(5)[None] < jnp.array([[3], [5]]),
            'drop': jnp.zeros(2, bool),
        }
    params = random_like(module.init(jax.random.key(0), x, t, cond)['params'], jax.random.key(3))
    return lambda params: module.apply({'params': params}, x, t, cond)[0], params


@pytest.mark.parametrize('name', ['dit', 'pixart'])
@pytest.mark.parametrize('kept, off', [('bfloat16', 0.01), ('int8', 0.05)])
def test_a_network_kept_in_less_says_nearly_the_same(name, kept, off):
    call, params = network(name)
    exact, rough = call(params), call(precision.keep(params, kept))
    error = float(jnp.linalg.norm(rough - exact) / jnp.linalg.norm(exact))
    assert 0 < error < off, error


def test_a_product_of_integers_is_exact():
    key_x, key_w = jax.random.split(jax.random.key(0))
    x = jax.random.randint(key_x, (5, 3, 16), -127, 128).at[..., 0].set(127).astype(jnp.float32)
    w = jax.random.randint(key_w, (16, 8), -127, 128).at[0].set(-127).astype(jnp.float32)
    np.testing.assert_allclose(precision.quantized(w).dot(x), x @ w, rtol=1e-6)


def test_an_input_of_zeros_stays_one():
    assert not precision.quantized(jnp.ones((4, 2))).dot(jnp.zeros((3, 4))).any()


def test_nearly_all_of_a_network_is_quantized():
    _, params = network('dit')
    kept = precision.keep(params, 'int8')
    sizes = {
        dtype: sum(a.size for a in jax.tree.leaves(kept) if a.dtype == dtype)
        for dtype in (jnp.int8, jnp.bfloat16)
    }
    assert sizes[jnp.int8] > 0.9 * 3 * 64 * 18 * 64 and sizes[jnp.bfloat16] < sizes[jnp.int8] / 2
    assert precision.keep(params, 'float32') is params
    with pytest.raises(ValueError, match="precision is 'fp8'; choose from float32, bfloat16, int8"):
        precision.keep(params, 'fp8')


def test_the_product_of_integers_stays_one_where_it_is_compiled():
    text = (
        jax.jit(lambda k, x: k.dot(x))
        .lower(precision.quantized(jnp.ones((8, 8))), jnp.ones((4, 8)))
        .as_text()
    )
    assert 'tensor<4x8xi8>, tensor<8x8xi8>) -> tensor<4x8xi32>' in text
