"""Paths keep their definitions, and every prediction converts into every other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import path as paths
from jaxgen.diffusion import prediction as predictions

PATHS = {
    'linear': paths.Linear(),
    'gvp': paths.Gvp(),
    'vp': paths.VariancePreserving(),
    'cosine': paths.VariancePreserving('cosine'),
    'continuous': paths.ContinuousVariancePreserving(),
    've': paths.VarianceExploding(),
}


def test_training_steps_are_ddpms():
    path = paths.VariancePreserving()
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    t = jnp.arange(1, 1001) / 1000
    np.testing.assert_allclose(path.alpha(t) ** 2, alpha_bar, rtol=1e-4)
    np.testing.assert_allclose(path.sigma(t) ** 2, 1 - alpha_bar, rtol=1e-4)
    assert path.alpha(jnp.zeros(())) == 1 and path.sigma(jnp.zeros(())) == 0


def test_continuous_path_is_the_integral_of_its_betas():
    path = paths.ContinuousVariancePreserving(0.1, 20.0)
    with jax.enable_x64(True):
        t = jnp.linspace(0.05, 1, 20)
        betas = 0.1 + t * 19.9
        drift = jax.vmap(lambda t: paths.d_alpha(path, t) / path.alpha(t))(t)
        np.testing.assert_allclose(drift, -betas / 2, rtol=1e-12)
        np.testing.assert_allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, 1, rtol=1e-12)
    # DDPM's betas are its thousandths.
    t = jnp.linspace(0.1, 1, 10)
    np.testing.assert_allclose(path.log_alpha(t), paths.VariancePreserving().log_alpha(t), rtol=1e-2)


def test_which_paths_end_in_noise():
    assert {name for name, path in PATHS.items() if paths.ends_in_noise(path)} == {'linear', 'gvp'}


@pytest.mark.parametrize('name', PATHS)
def test_time_inverts_log_snr(name):
    with jax.enable_x64(True):
        t = jnp.linspace(0.02, 0.98, 97, dtype=jnp.float64)
        path = PATHS[name]
        np.testing.assert_allclose(path.time(paths.log_snr(path, t)), t, rtol=1e-9)


@pytest.mark.parametrize('output', predictions.OUTPUTS)
@pytest.mark.parametrize('name', PATHS)
def test_every_prediction_converts(name, output):
    path = PATHS[name]
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        data, noise = jnp.asarray(rng.normal(size=(2, 5, 4, 4, 3)))
        t = jnp.linspace(0.1, 0.9, 5)
        x = paths.interpolate(path, data, noise, t)
        for time in ('unit', 'reversed'):
            rule = predictions.Prediction(output, time)
            estimate = rule.estimate(path, x, t, rule.target(path, data, noise, t))
            slope = [paths.per_example(f(path, t), x) for f in (paths.d_alpha, paths.d_sigma)]
            np.testing.assert_allclose(estimate.data, data, atol=1e-6)
            np.testing.assert_allclose(estimate.noise, noise, atol=1e-6)
            np.testing.assert_allclose(estimate.velocity, slope[0] * data + slope[1] * noise, atol=1e-4)
            np.testing.assert_allclose(
                estimate.score, -noise / paths.per_example(path.sigma(t), x), atol=1e-4
            )


def test_estimates_are_finite_at_both_ends():
    for name, path in PATHS.items():
        for output in predictions.OUTPUTS:
            for t in (0.0, 1.0):
                x, out = jnp.ones((1, 2)), jnp.full((1, 2), 0.5)
                estimate = predictions.Prediction(output).estimate(path, x, jnp.full(1, t), out)
                values = (estimate.data, estimate.noise)
                assert all(bool(jnp.isfinite(v).all()) for v in values), (name, output, t)


def test_the_level_of_noise_that_a_network_reads_grows_to_both_ends():
    rule = predictions.Prediction('edm', 'log_sigma')
    for name, path in PATHS.items():
        x, levels = rule.inputs(path, jnp.ones((4, 2)), jnp.asarray([0.0, 0.1, 0.9, 1.0]))
        assert jnp.isfinite(x).all() and jnp.isfinite(levels).all() and (jnp.diff(levels) > 0).all(), name


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match='training steps'):
        predictions.build(time='steps', path=paths.Linear())
    with pytest.raises(ValueError, match='learned_variance'):
        predictions.build(learned_variance=True, path=paths.Linear())
    with pytest.raises(ValueError, match='betas'):
        paths.build('vp', betas='sqrt')
    with pytest.raises(ValueError, match='beta_min'):
        paths.build('vp_continuous', beta_min=3.0, beta_max=2.0)
    with pytest.raises(ValueError, match="'vp_continuous'"):
        paths.build('subvp')
