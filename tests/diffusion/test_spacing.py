"""Spacings: the public schedulers' own times, their formulas, and both ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.mixture import VELOCITY

from jaxgen.diffusion import path as paths
from jaxgen.diffusion import sampler
from jaxgen.diffusion.solvers import euler
from jaxgen.diffusion.spacings import karras, log_snr, noise_range, shifted, sigmoid, training_steps, uniform

VP = paths.VariancePreserving()
SPACINGS = {
    'uniform': uniform.build(),
    'trailing': training_steps.build(VP),
    'leading': training_steps.build(VP, 'leading', offset=1),
    'linspace': training_steps.build(VP, 'linspace', extra=True),
    'karras': karras.build(VP),
    'karras on EDM': karras.build(paths.VarianceExploding()),
    'karras on a line': karras.build(paths.Linear()),
    'log_snr': log_snr.build(VP),
    'log_snr on a line': log_snr.build(paths.Linear()),
    'sigmoid': sigmoid.build(),
}


def times(spacing, steps, **knobs):
    t = jax.jit(spacing.time)(jnp.arange(51), jnp.int32(steps), {**spacing.knobs, **knobs})
    return np.asarray(t)[: steps + 1]


@pytest.mark.parametrize('name', SPACINGS)
def test_every_spacing_falls_to_the_data(name):
    for steps in (1, 2, 7, 50):
        t = times(SPACINGS[name], steps)
        assert t[-1] == 0 and (np.diff(t) < 0).all() and t[0] <= 1.00001, (steps, t)
        assert t[0] > 0.8 or name == 'leading', (steps, t)


def test_training_steps_by_hand():
    def steps(placement, count, **settings):
        return (
            (times(training_steps.build(VP, placement, **settings), count)[:-1] * 1000 - 1).round().tolist()
        )

    assert steps('trailing', 4) == [999, 749, 499, 249]
    assert steps('trailing', 7) == [999, 856, 713, 570, 428, 285, 142]
    assert steps('leading', 4) == [750, 500, 250, 0]
    assert steps('leading', 4, offset=1) == [751, 501, 251, 1]
    assert steps('linspace', 4) == [999, 666, 333, 0]
    assert steps('linspace', 3, extra=True) == [999, 666, 333]


@pytest.mark.parity
@pytest.mark.parametrize('placement', training_steps.PLACEMENTS)
def test_training_steps_are_diffusers(placement):
    diffusers = pytest.importorskip('diffusers')
    ddim = diffusers.DDIMScheduler(1000, timestep_spacing=placement)
    solver = diffusers.DPMSolverMultistepScheduler(1000, timestep_spacing=placement)
    for steps in range(1, 251):
        ours = training_steps.training_steps(placement, steps, 1000)
        ddim.set_timesteps(steps)  # 'trailing' counts one too many where a sum misses 0 by rounding
        np.testing.assert_array_equal(ours, ddim.timesteps.numpy()[:steps], str(steps))
        if steps % 10 == 0:
            solver.set_timesteps(steps)
            ours = training_steps.training_steps(placement, steps, 1000, placement != 'trailing')
            np.testing.assert_array_equal(ours, solver.timesteps.numpy()[:steps], str(steps))


@pytest.mark.parity
@pytest.mark.parametrize('steps', [5, 18])
def test_noise_levels_are_diffusers(steps):
    diffusers = pytest.importorskip('diffusers')
    edm = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    edm.set_timesteps(steps)
    ours = 80 * times(SPACINGS['karras on EDM'], steps)
    np.testing.assert_allclose(ours, edm.sigmas.numpy(), rtol=1e-4)
    for spacing, setting in (('karras', 'use_karras_sigmas'), ('log_snr', 'use_lu_lambdas')):
        scheduler = diffusers.DPMSolverMultistepScheduler(1000, 1e-4, 2e-2, 'linear', **{setting: True})
        scheduler.set_timesteps(steps)
        with jax.enable_x64(True):
            t = jnp.asarray(times(SPACINGS[spacing], steps)[:-1])
            ours = VP.sigma(t) / VP.alpha(t)
        np.testing.assert_allclose(ours, scheduler.sigmas.numpy()[:-1], rtol=1e-3)


@pytest.mark.parity
@pytest.mark.parametrize('shift', [1.0, 3.0])
def test_shift_is_diffusers(shift):
    diffusers = pytest.importorskip('diffusers')
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=(1 - np.arange(10) / 10).tolist())
    ours = shifted(times(SPACINGS['uniform'], 10), shift)
    np.testing.assert_allclose(ours, scheduler.sigmas.numpy(), atol=1e-6)


def test_noise_levels_by_formula():
    edm = SPACINGS['karras on EDM']
    levels = 80 * times(edm, 18)
    share = np.arange(18) / 17
    expected = (80 ** (1 / 7) + share * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(levels[:-1], expected, rtol=1e-4)
    assert times(edm, 5, sigma_max=8.0)[0] == pytest.approx(0.1, rel=1e-4)
    with jax.enable_x64(True):
        t = jnp.asarray(times(SPACINGS['log_snr on a line'], 9)[:-1])
        gaps = np.diff(paths.log_snr(paths.Linear(), t))
        np.testing.assert_allclose(gaps, gaps[0], rtol=1e-6)
    assert noise_range(VP)[0] == pytest.approx(0.01, rel=1e-2)


def test_sigmoid_steps_most_in_the_middle():
    sizes = -np.diff(times(SPACINGS['sigmoid'], 9))
    assert sizes.argmax() == 4 and sizes[0] < sizes[4] / 4
    np.testing.assert_allclose(sizes, sizes[::-1], rtol=1e-4)
    late = -np.diff(times(SPACINGS['sigmoid'], 9, center=0.8))
    assert late.argmin() == 0 and late.argmax() == 7


def made(**settings):
    arguments = {'latent': (4, 4, 3), 'resolution': 64} | settings
    return sampler.build({'model': None}, paths.Linear(), VELOCITY, euler.build(), **arguments)


def test_the_sampler_places_begin_end_and_last():
    def walk(steps, **knobs):
        sample = made()
        return np.asarray(sample.time(jnp.arange(steps + 1), steps, sample.knobs(**knobs)))

    np.testing.assert_allclose(walk(4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(walk(4, begin=0.9, end=0.1), [0.9, 0.7, 0.5, 0.3, 0.1], rtol=1e-6)
    np.testing.assert_allclose(walk(4, last=0.1), [1, 0.7, 0.4, 0.1, 0], rtol=1e-6)
    np.testing.assert_allclose(walk(1, last=0.1), [1, 0])
    for knobs in ({'begin': 0.1, 'end': 0.2}, {'last': 1.0}, {'last': 0.1, 'end': 0.2}, {'begin': 1.5}):
        with pytest.raises(ValueError, match='order begin, last, end'):
            made().knobs(**knobs)


def test_a_shift_follows_the_resolution():
    assert made(shift=3.0, shift_at=128).defaults['shift'] == 1.5  # sqrt of the pixels' ratio
    assert made(shift=3.0).defaults['shift'] == 3.0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match='training_steps'):
        training_steps.build(paths.Linear())
    with pytest.raises(ValueError, match='placement'):
        training_steps.build(VP, 'spread')
    with pytest.raises(ValueError, match='max_steps'):
        training_steps.build(VP, max_steps=1001)
    with pytest.raises(ValueError, match='sigma_min is 3.0 and sigma_max 2.0'):
        made(spacing=log_snr.build(VP, sigma_min=3.0, sigma_max=2.0))
    with pytest.raises(ValueError, match='table up to 30'):
        made(spacing=training_steps.build(VP, max_steps=30), steps=31)


@pytest.mark.parametrize(
    'spacing, knobs, message',
    [
        (karras.build(VP), {'rho': 0}, 'rho is 0'),
        (karras.build(VP), {'sigma_min': 0}, 'sigma_min is 0'),
        (log_snr.build(VP), {'sigma_max': 1e-3}, 'sigma_max 0.001'),
        (sigmoid.build(), {'steepness': -1}, 'steepness is -1'),
        (None, {'steps': float('inf')}, 'must be finite'),
        (None, {'steps': 10**12}, 'steps is 1000000000000'),
        (None, {'steps': 2.5}, 'steps is 2.5'),
    ],
)
def test_knobs_without_a_meaning_are_refused(spacing, knobs, message):
    with pytest.raises(ValueError, match=message):
        made(spacing=spacing).knobs(**knobs)
