"""In-painting and image-to-image: fields of the request, for any sampler of the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.conditioning.request import Request
from nouns import tiny

FLOW = {'name': 'linear'}, {'output': 'velocity'}, 'heun'
DDPM = {'name': 'vp'}, {'output': 'noise', 'time': 'steps'}, 'ddim'


@pytest.mark.parametrize('path, prediction, solver', [FLOW, DDPM], ids=['flow', 'ddpm'])
def test_what_the_request_keeps(path, prediction, solver):
    made = tiny.build(
        model={'name': 'dit', 'patch': 4, 'hidden': 16, 'depth': 1, 'heads': 2},
        path=path,
        prediction=prediction,
        sampler={'name': 'diffusion', 'solver': {'name': solver}, 'steps': 10},
    )
    params, keys = tiny.randomised(made), jax.random.split(jax.random.key(1), 2)
    cond = {'label': jnp.array([1, 2]), 'drop': jnp.zeros(2, bool)}
    init = jax.random.uniform(jax.random.key(2), (2, 8, 8, 3), minval=-1)
    mask = jnp.zeros((2, 8, 8, 1)).at[:, :, 4:].set(1.0)
    sample, knobs = jax.jit(made.sampler.sample), made.sampler.knobs()

    painted = sample(params, Request(cond, cond, keys, init, mask), knobs)
    np.testing.assert_allclose(painted[:, :, :4], init[:, :, :4], atol=1e-6)
    assert jnp.abs(painted - init)[:, :, 4:].mean() > 0.1

    def distance(start):
        request = Request(cond, cond, keys, init, None, jnp.float32(start))
        return float(jnp.abs(sample(params, request, knobs) - init).mean())

    assert distance(0.0) < 1e-6
    assert 0.01 < distance(0.3) < 0.7 * distance(1.0)
