"""Layer caching as a function from network to denoiser: a plan [steps, layers] says which layers are
replaced by what they added the last time they ran (Learning-to-Cache, arXiv:2406.01733).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.conditioning.request import Request
from jaxgen.diffusion.denoiser import Denoiser
from jaxgen.diffusion.guidance import guided
from nouns import tiny

STEPS, LAYERS = 6, 3
NEVER = np.zeros((STEPS, LAYERS), bool)
OFTEN = np.arange(STEPS)[:, None] % 2 * np.array([1, 1, 0]) == 1  # the first two layers, every other step


def cached(network, path, prediction, plan):
    """The denoiser whose memory is each layer's delta; `network(x, t, cond, ...)` has its parameters."""

    def init(x, cond):
        deltas = jax.eval_shape(lambda: network(x, jnp.zeros(len(x)), cond, memory={})[2])
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), deltas)

    def denoise(x, t, cond, memory, at):
        x_in, t_in = prediction.inputs(path, x, t)
        reuse = {'reuse': plan[at.step]}
        output, _, memory = network(x_in, t_in, cond, memory=memory, per_layer=reuse)
        return prediction.estimate(path, x, t, output), memory

    return Denoiser(init, denoise)


@pytest.mark.parametrize('solver, guide', [('euler', None), ('heun', 2.0)], ids=['plain', 'guided'])
def test_a_plan_reuses_layers(solver, guide):
    sampler = {'name': 'diffusion', 'solver': {'name': solver}, 'steps': STEPS, 'guidance': guide or 1.0}
    made = tiny.build(
        model={'name': 'dit', 'patch': 4, 'hidden': 16, 'depth': LAYERS, 'heads': 2},
        path={},
        prediction={},
        sampler=sampler,
    )
    cond, null = ({'label': jnp.array([0, 3]), 'drop': jnp.full(2, drop)} for drop in (False, True))
    params, keys = tiny.randomised(made), jax.random.split(jax.random.key(1), 2)
    request, sample, knobs = Request(cond, null, keys), jax.jit(made.sampler.sample), made.sampler.knobs()

    @jax.jit
    def planned(params, request, plan):
        network = functools.partial(made.networks['model'], params['model'])
        denoiser = cached(network, made.sampler.path, made.sampler.prediction, plan)
        if guide is None:
            return made.sampler.walk(denoiser, request.cond, request, knobs)
        return made.sampler.walk(guided(denoiser, guide), (request.cond, request.null), request, knobs)

    plain, other = sample(params, request, knobs), sample(params, request.replace(keys=keys[::-1]), knobs)
    np.testing.assert_allclose(planned(params, request, NEVER), plain, atol=1e-6)
    change, noise = (float(jnp.abs(x - plain).mean()) for x in (planned(params, request, OFTEN), other))
    assert 1e-4 < change < 0.5 * noise
