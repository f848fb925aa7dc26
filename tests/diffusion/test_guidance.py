"""Guidance: its formula, its interval, its rescale, and that it costs nothing where it does not act."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion.denoiser import At, Denoiser, network_denoiser
from jaxgen.diffusion.guidance import guided
from jaxgen.diffusion.path import Linear
from jaxgen.diffusion.prediction import Prediction

X = jax.random.normal(jax.random.key(0), (2, 4, 4, 4))
COND = jnp.asarray([1.0, 2.0]), jnp.asarray([0.5, -1.0])


def network(x, t, cond):
    return jnp.sin(x * cond[:, None, None, None]), {}, None


def output(t=0.5, **settings):
    denoiser = guided(network_denoiser(network, Linear(), Prediction()), **settings)
    estimate, _ = denoiser.denoise(X, jnp.full(2, t), COND, denoiser.init(X, COND), At(0, 1))
    return np.asarray(estimate.output)


POSITIVE, NEGATIVE = (np.asarray(network(X, None, cond)[0]) for cond in COND)


def test_formula_and_first_channels():
    guided_output = NEGATIVE + 3 * (POSITIVE - NEGATIVE)
    np.testing.assert_allclose(output(scale=3.0), guided_output, atol=1e-6)
    expected = np.concatenate([guided_output[..., :3], POSITIVE[..., 3:]], -1)
    np.testing.assert_allclose(output(scale=3.0, channels=3), expected, atol=1e-6)


@pytest.mark.parametrize('t, acts', [(0.1, False), (0.2, True), (0.6, True), (0.7, False)])
def test_interval(t, acts):
    difference = np.abs(output(t, scale=3.0, low=0.2, high=0.6) - POSITIVE).max()
    assert (difference > 0.1) == acts


def test_rescale_restores_the_spread():
    rescaled = output(scale=7.0, rescale=1.0)
    np.testing.assert_allclose(rescaled.std((1, 2, 3)), POSITIVE.std((1, 2, 3)), rtol=1e-5)
    assert output(scale=7.0).std() > 1.5 * POSITIVE.std()


def test_memory_walks_with_both_halves():
    def denoise(x, t, cond, memory, at):
        estimate, _ = network_denoiser(network, Linear(), Prediction()).denoise(x, t, cond, None, at)
        return estimate, memory + len(x)

    counting = guided(Denoiser(lambda x, cond: jnp.zeros(len(x)), denoise), 3.0, 0.0, 0.2)
    memory = counting.init(X, COND)
    assert memory.shape == (4,)
    estimate, memory = counting.denoise(X, jnp.full(2, 0.5), COND, memory, At(0, 1))
    np.testing.assert_allclose(estimate.output, POSITIVE, atol=1e-6)
    assert memory.tolist() == [4.0] * 4
