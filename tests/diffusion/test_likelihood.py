"""Log densities along the flow equal the mixture's own, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.mixture import VELOCITY, Mixture

from jaxgen.diffusion import path as paths
from jaxgen.diffusion.likelihood import Likelihood, likelihood
from jaxgen.diffusion.prediction import Prediction, span

PLANE = Mixture((0.4, 0.6), ((-1.0, 0.5), (0.8, -0.3)), (0.4, 0.6))
NOISE = Prediction('noise', 'unit')


@pytest.mark.parametrize(
    'path, prediction, ends',
    [
        (paths.Linear(), VELOCITY, (0.0, 1.0)),
        (paths.Gvp(), NOISE, (1e-3, 0.999)),
        (paths.ContinuousVariancePreserving(), NOISE, (1e-3, 1.0)),
    ],
    ids=['linear', 'gvp', 'vp'],
)
def test_exact_trace_gives_the_log_density(path, prediction, ends):
    assert span(path, prediction) == pytest.approx(ends)
    with jax.enable_x64(True):
        x = PLANE.draw(path, jax.random.key(0), 6, ends[0])
        keys, denoiser = jax.random.split(jax.random.key(1), 6), PLANE.denoiser(path, prediction)
        found = jax.jit(lambda: likelihood(denoiser, path, x, None, keys, ends, 'exact', 1e-7, 1e-7))()
        expected = PLANE.log_density(path, x, ends[0])
    # What is left of the data at the noise's end is all that is not Gaussian there.
    left = 1e-4 if isinstance(path, paths.Linear) else 3e-2
    np.testing.assert_allclose(found.log_density, expected, atol=left)
    assert abs(found.noise).max() < 5 and found.steps < 200


def test_random_signs_are_right_on_average():
    path, count = paths.Linear(), 512
    x = jnp.tile(jnp.asarray([[0.3, -0.2]]), (count, 1))
    keys = jax.random.split(jax.random.key(1), count)
    found = jax.jit(lambda: likelihood(PLANE.denoiser(path), path, x, None, keys))().log_density
    expected = float(PLANE.log_density(path, x[:1], 0.0)[0])
    deviation = float(found.std()) / count**0.5
    assert found.std() > 0.01  # an estimate, unlike the exact trace
    assert abs(float(found.mean()) - expected) < 4 * deviation + 1e-3


def test_bits_of_noise_and_of_a_wrong_trace():
    flat = Likelihood(jnp.full(3, -12 * jnp.log(2.0)), jnp.zeros((3, 2, 2, 3)), jnp.int32(1))
    np.testing.assert_allclose(flat.bits_per_dimension(), np.log2(255), rtol=1e-6)  # even over [-1, 1]
    with pytest.raises(ValueError, match='hutchinson, exact'):
        likelihood(PLANE.denoiser(paths.Linear()), paths.Linear(), jnp.zeros((1, 2)), None, None, trace='all')
