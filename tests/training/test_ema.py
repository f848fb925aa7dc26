"""The average of parameters against its closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.training import ema


def test_average_is_float32_and_exact():
    params = {'a': jnp.asarray([1.0, 2.0], jnp.bfloat16), 'codes': jnp.asarray([3], jnp.int8)}
    average = ema.init(params)
    assert average['a'].dtype == jnp.float32 and average['codes'].dtype == jnp.int8
    expected = np.asarray([1.0, 2.0])
    for step in range(4):
        params = jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), params)
        average = ema.update(average, params, step, decay=0.75, warmup=False)
        expected = 0.75 * expected + 0.25 * np.asarray(params['a'], np.float64)
    np.testing.assert_allclose(average['a'], expected, rtol=1e-6)
    assert average['codes'][0] == 7


def test_warmup_grows_to_the_decay():
    decays = np.asarray([ema.decay_at(step, 0.999) for step in (0, 10, 10**6)])
    np.testing.assert_allclose(decays, [0.1, 11 / 20, 0.999], rtol=1e-6)


def test_average_does_not_share_buffers_with_the_parameters():
    params = {'a': jnp.ones(4)}
    average = ema.init(params)
    step = jax.jit(
        lambda a, p: (ema.update(a, p, 0), jax.tree.map(lambda x: x * 2, p)), donate_argnums=(0, 1)
    )
    average, params = step(average, params)
    np.testing.assert_array_equal(average['a'], 1.0)
    np.testing.assert_array_equal(params['a'], 2.0)
