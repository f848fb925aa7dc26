"""The times of training: their ranges and distributions, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen.diffusion import path
from jaxgen.objectives import times

KEYS = jax.random.split(jax.random.key(2), 4096)
SCATTER = 1.95 / np.sqrt(len(KEYS))  # Kolmogorov's distance that one draw in a thousand exceeds


def draw(name, walk=None, mean=0.0, spread=1.0, shift=1.0, low=0.0, high=1.0):
    walk = walk or path.build('linear')
    return np.asarray(times.sampler(name, walk, mean, spread, shift, low, high)(KEYS), np.float64)


def distance(sample, cumulative):
    return stats.kstest(sample, cumulative).statistic


def test_uniform_and_its_interval():
    t = draw('uniform')
    assert 0 <= t.min() and t.max() < 1 and distance(t, 'uniform') < SCATTER
    t = draw('uniform', low=0.2, high=0.7)
    assert 0.2 <= t.min() < 0.21 and 0.69 < t.max() < 0.7
    assert distance((t - 0.2) / 0.5, 'uniform') < SCATTER


def test_discrete_draws_every_training_step_alike():
    steps = draw('discrete', path.build('vp', train_steps=10)) * 10
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-5)
    counts = np.bincount(np.round(steps).astype(int), minlength=11)
    assert counts[0] == 0 and stats.chisquare(counts[1:]).pvalue > 1e-3


def test_logit_normal():
    t = draw('logit_normal', mean=1.0, spread=0.5)
    assert distance(np.log(t / (1 - t)), stats.norm(1.0, 0.5).cdf) < SCATTER


@pytest.mark.parametrize('name', ['ve', 'linear', 'gvp', 'vp'])
def test_log_normal_is_the_same_noise_on_every_path(name):
    walk = path.build(name)
    t = jnp.float32(draw('log_normal', walk, mean=-1.2, spread=1.2))
    noise_to_data = np.log(np.asarray(walk.sigma(t) / walk.alpha(t)))
    # DDPM's first training step has noise already: between it and the data its path is coarse.
    kept = noise_to_data > -4
    assert distance(noise_to_data[kept], stats.norm(-1.2, 1.2).cdf) < SCATTER + (~kept).mean()


@pytest.mark.parametrize('scale', [-0.5, 0.0, 0.8, 1.29])
def test_mode_has_the_density_of_sd3(scale):
    """The share of times below f(u) is 1 - u, for SD3's f, which falls."""
    u = np.linspace(0, 1, 2001)
    f = 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
    assert distance(draw('mode', spread=scale), lambda t: np.interp(t, f[::-1], (1 - u)[::-1])) < SCATTER


def test_cosmap_has_the_density_of_sd3():
    """Its density 2 / (pi (1 - 2 t + 2 t^2)) integrates to an arc tangent."""
    assert distance(draw('cosmap'), lambda t: 2 / np.pi * np.arctan(t / (1 - t))) < SCATTER


def test_shift_moves_log_snr():
    """SD3's shift s multiplies sigma / alpha of the linear path by s."""
    plain, shifted = draw('uniform'), draw('uniform', shift=3.0)
    np.testing.assert_allclose(shifted / (1 - shifted), 3 * plain / (1 - plain), rtol=1e-3)


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'name': 'sometimes'}, 'uniform, discrete, logit_normal'),
        ({'name': 'discrete'}, "set path.name='vp'"),
        ({'name': 'discrete', 'walk': path.build('vp'), 'shift': 3.0}, 'no shift'),
        ({'name': 'mode', 'spread': 2.0}, r'spread is 2.0.*\[-1, 1.752\]'),
        ({'name': 'logit_normal', 'spread': -1.0}, 'spread is -1.0'),
        ({'name': 'uniform', 'low': 0.6, 'high': 0.4}, 'low is 0.6 and high 0.4'),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        draw(**settings)
