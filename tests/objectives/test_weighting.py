"""Weightings by the papers' formulas: the weighted loss is the same whatever the network predicts."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import path as paths
from jaxgen.diffusion import prediction as predictions
from jaxgen.objectives import weighting

T = np.array([0.0205, 0.1005, 0.3505, 0.5005, 0.7205, 0.9505])  # between training steps
PATHS = ('linear', 'gvp', 'vp', 've')


def weigh(name, walk, output, t=T, gamma=None, bias=0.0, floor=0.0, sigma_data=0.5):
    predict = predictions.build(output, 'unit', sigma_data=sigma_data)
    return np.asarray(weighting.build(name, walk, predict, gamma, bias, floor)(jnp.float32(t)), np.float64)


def levels(walk):
    t = jnp.float32(T)
    return np.asarray(walk.alpha(t), np.float64), np.asarray(walk.sigma(t), np.float64)


def data_per_output(walk, output):
    """How much larger the error of the data is than the loss's error of the output, by the definitions."""
    alpha, sigma = levels(walk)
    t = jnp.float32(T)
    bend = alpha * np.asarray(paths.d_sigma(walk, t)) - sigma * np.asarray(paths.d_alpha(walk, t))
    return {
        'data': np.ones_like(alpha),
        'noise': sigma / alpha,
        'score': sigma / alpha,  # sigma x score is the noise
        'v': sigma / (alpha**2 + sigma**2),
        'velocity': sigma / bend,
        'edm': 0.5 * sigma / np.sqrt(sigma**2 + 0.25 * alpha**2),
    }[output]


def of_data(name, walk):
    """The papers' weights of the squared error of the data."""
    alpha, sigma = levels(walk)
    snr, t = (alpha / sigma) ** 2, np.float64(T)
    step = 1e-3
    slope = [walk.alpha(jnp.float32(t + d)) / walk.sigma(jnp.float32(t + d)) for d in (-step, step)]
    decay = -2 * (np.log(np.asarray(slope[1], np.float64)) - np.log(np.asarray(slope[0]))) / (2 * step)
    return {
        'snr': snr,
        'truncated_snr': np.maximum(snr, 1),
        'min_snr': np.minimum(snr, 5),
        'edm': ((sigma / alpha) ** 2 + 0.25) / (0.5 * sigma / alpha) ** 2,
        'p2': snr / (1 + snr),
        'velocity': (alpha * decay / 2) ** 2,
        'likelihood': snr * decay / 2,
        'sigmoid': snr * decay / 2 / (1 + np.exp(np.log(snr) - 0.7)),
    }[name]


@pytest.mark.parametrize('output', predictions.OUTPUTS)
@pytest.mark.parametrize('name', [name for name in weighting.WEIGHTINGS if name != 'none'])
def test_weights_are_the_papers_for_every_prediction(name, output):
    for path in PATHS:
        walk = paths.build(path)
        expected = of_data(name, walk) * data_per_output(walk, output) ** 2
        ours = weigh(name, walk, output, bias=0.7)
        np.testing.assert_allclose(ours, expected, rtol=5e-3)


@pytest.mark.parametrize('output', predictions.OUTPUTS)
def test_own_error_is_not_weighted(output):
    assert (weigh('none', paths.build('linear'), output) == 1).all()


def test_what_a_weighting_is_named_after_has_weight_one():
    for path in PATHS:
        walk = paths.build(path)
        np.testing.assert_allclose(weigh('snr', walk, 'noise'), 1)
        np.testing.assert_allclose(weigh('velocity', walk, 'velocity'), 1)
        np.testing.assert_allclose(weigh('edm', walk, 'edm'), 1, rtol=1e-5)


def test_min_snr_as_published():
    """min(SNR, gamma) / SNR for noise, / (SNR + 1) for v (arXiv:2303.09556), on GVP's path."""
    walk = paths.build('gvp')
    alpha, sigma = levels(walk)
    snr = (alpha / sigma) ** 2
    for gamma in (1.0, 5.0):
        least = np.minimum(snr, gamma)
        np.testing.assert_allclose(weigh('min_snr', walk, 'noise', gamma=gamma), least / snr, rtol=1e-5)
        np.testing.assert_allclose(weigh('min_snr', walk, 'data', gamma=gamma), least, rtol=1e-4)
        np.testing.assert_allclose(weigh('min_snr', walk, 'v', gamma=gamma), least / (snr + 1), rtol=1e-4)


def test_floor_holds_the_velocity_of_a_predicted_picture():
    """JiT's loss: the velocity, whose 1 / t stops growing at a time of 0.05."""
    weights = weigh('velocity', paths.build('linear'), 'data', floor=0.05)
    np.testing.assert_allclose(weights, 1 / np.maximum(T, 0.05) ** 2, rtol=1e-5)


@pytest.mark.parametrize('output', predictions.OUTPUTS)
@pytest.mark.parametrize('name', weighting.WEIGHTINGS)
def test_weights_are_finite_at_the_ends(name, output):
    for path in PATHS:
        weights = weigh(name, paths.build(path), output, np.array([0.0, 1e-7, 1.0]))
        assert np.isfinite(weights).all() and (weights >= 0).all()


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match='none, snr, truncated_snr, min_snr'):
        weigh('fair', paths.build('linear'), 'data')
