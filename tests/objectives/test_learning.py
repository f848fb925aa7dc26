"""Every family of the denoising loss teaches a small network a mixture, which is then drawn from it."""

import jax
import jax.numpy as jnp
import modes
import pytest
from given import FOLDED, LATENTS

from jaxgen.diffusion import path, prediction
from jaxgen.objectives import diffusion

STEPS, DRAWN, WALK = 800, 1024, 30
# A path, what is predicted there, the time it reads, and how it is trained.
FAMILIES = {
    'sit velocity': ('vp_continuous', 'velocity', 'reversed', {'low': 1e-2}),
    'sit score': ('linear', 'score', 'reversed', {'weighting': 'likelihood', 'low': 0.1, 'high': 0.95}),
    'ddpm': ('vp', 'noise', 'unit', {'times': 'discrete', 'weighting': 'min_snr'}),
    'picture': ('linear', 'data', 'unit', {'weighting': 'velocity', 'floor': 0.3}),
    'edm': ('ve', 'edm', 'log_sigma', {'times': 'log_normal', 'spread': 1.6, 'weighting': 'edm'}),
}


def draw(walk, predict, params):
    """DDIM from much noise to little, in equal steps of log-SNR."""
    times = walk.time(jnp.linspace(-5.0, 4.0, WALK + 1))

    def step(x, ends):
        t, t_next = (jnp.full(DRAWN, end) for end in ends)
        output, _, _ = modes.network(params, *predict.inputs(walk, x, t), {})
        estimate = predict.estimate(walk, x, t, output)
        return path.interpolate(walk, estimate.data, estimate.noise, t_next), None

    first = walk.sigma(times[0]) * jax.random.normal(jax.random.key(3), (DRAWN, 2))
    return jax.lax.scan(step, first, (times[:-1], times[1:]))[0]


@pytest.mark.parametrize('family', FAMILIES)
def test_a_small_network_learns_the_mixture(family):
    name, output, time, settings = FAMILIES[family]
    walk = path.build(name)
    predict = prediction.build(output, time, path=walk)
    networks = {'model': modes.network}
    objective = diffusion.build(networks, walk, predict, FOLDED, LATENTS, drop=0.0, **settings)
    params = modes.trained(objective.phases[0].loss, modes.data, STEPS)
    drawn = jax.jit(lambda params: draw(walk, predict, params))(params)
    print(f'{family}: miss {modes.miss(drawn):.3f}, shares {modes.shares(drawn)}')
    assert modes.miss(drawn) < 0.6 and modes.shares(drawn).min() > 0.1  # a Gaussian: 2.2
