"""Multistep and ancestral solvers on mixtures with known scores: orders, moments, the ends, the corrector."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.mixture import Mixture, order

from jaxgen import keys as random
from jaxgen.diffusion import loop
from jaxgen.diffusion import path as paths
from jaxgen.diffusion.solvers import State, ddim, ddpm, dopri5, dpm_solver, euler, multistep, unipc
from jaxgen.diffusion.solvers.corrector import corrected

dpm = functools.partial(dpm_solver.build, lower_order_final=False)
uni = functools.partial(unipc.build, lower_order_final=False)
ORDERS = {
    'ddim': (ddim.build(), 1),
    'dpm1': (dpm(1), 1),
    'dpm2': (dpm(2), 2),
    'dpm2_heun': (dpm(2, 'heun'), 2),
    'dpm2_noise': (dpm(2, predict='noise'), 2),
    'dpm2_corrected': (dpm(2, corrector=True), 3),
    'euler_corrected': (corrected(euler.build(), 1, lower_order_final=False), 2),
    'unip2_bh1': (uni(2, 'bh1', corrector=False), 2),
    'unip3': (uni(3, corrector=False), 3),
    'unipc1_bh1': (uni(1, 'bh1'), 2),
    'unipc1_bh2': (uni(1, 'bh2'), 2),
    'unipc2_bh1': (uni(2, 'bh1'), 3),
    'unipc2_bh2': (uni(2, 'bh2'), 3),
    'unipc3': (uni(3), 4),
    'unipc3_noise': (uni(3, predict='noise'), 4),
}
PATHS = {
    'linear': paths.Linear(),
    'gvp': paths.Gvp(),
    'vp': paths.ContinuousVariancePreserving(),
}
ORDINARY = ('dpm2', 'unipc2_bh2', 'unipc3')  # what the other paths run in the ordinary tests


def _order_cases() -> list:
    return [
        pytest.param(
            name,
            path,
            marks=[] if path == 'linear' or name in ORDINARY else [pytest.mark.slow],
            id=f'{name}-{path}',
        )
        for path in PATHS
        for name in ORDERS
    ]


@pytest.mark.parametrize('name, path', _order_cases())
def test_order(name, path):
    solver, expected = ORDERS[name]
    with jax.enable_x64(True):
        slope = order(solver, PATHS[path], 0.7, 0.3, steps=(64, 128, 256), prime=expected)
    assert abs(slope - expected) < 0.2, slope


GAUSSIAN = Mixture(weights=(1.0,), means=((0.7,),), spreads=(0.4,))
STOCHASTIC = {
    'ddpm': ddpm.build(),
    'ddpm_large': ddpm.build('fixed_large'),
    'ddpm_learned': ddpm.build('learned'),
    'ddim_eta1': ddim.build(1.0),
    'ddim_eta0.5': ddim.build(0.5),
    'sde_dpm1': dpm_solver.build(1, stochastic=True),
    'sde_dpm2': dpm_solver.build(2, stochastic=True),
    'sde_dpm2_heun': dpm_solver.build(2, 'heun', stochastic=True),
}


def moments(solver, path, steps, scale=1.0):
    """Mean and variance of where the solver ends, exactly: on a Gaussian it is affine in x and its noise.

    The first two walks have no noise and begin at 0 and 1; each other one has noise in one step alone.
    """
    times, count = jnp.linspace(0.95, 0.1, steps + 1), steps + 2
    fresh = jnp.eye(steps, count, 2)[:, :, None] * scale
    denoise = GAUSSIAN.denoiser(path).denoise

    def evaluate(x, t, memory, evaluation=0):
        estimate, _ = denoise(x, jnp.full(x.shape[:1], t), None, None, None)
        return estimate.replace(variance=jnp.full_like(x, 0.3)), None

    def step(state, at):
        i, t, t_next, noise = at
        return solver.step(state.replace(step=i), evaluate, t, t_next, noise), None

    x = jnp.zeros((count, 1)).at[1].set(1)
    state = State(x, solver.init(x), None, jnp.int32(0), jnp.int32(steps))
    state, _ = jax.lax.scan(step, state, (jnp.arange(steps, dtype=jnp.int32), times[:-1], times[1:], fresh))
    end, (mean, variance) = state.x[:, 0], (jnp.squeeze(a) for a in GAUSSIAN.moments(path, times[0]))
    slope = end[1] - end[0]
    return end[0] + slope * mean, slope**2 * variance + ((end[2:] - end[0]) ** 2).sum()


@pytest.mark.parametrize('path', ['linear', 'vp'])
@pytest.mark.parametrize('name', STOCHASTIC)
def test_mean_and_variance(name, path, monkeypatch):
    """They tend to the truth as the steps shrink, and would not with noise of another size."""
    monkeypatch.setattr(random, 'draw', lambda sampler, noise, shape: noise)
    solver, path = STOCHASTIC[name], PATHS[path]
    with jax.enable_x64(True):
        truth = np.stack([np.squeeze(a) for a in GAUSSIAN.moments(path, 0.1)])
        coarse, fine = (np.stack(moments(solver, path, steps)) for steps in (100, 200))
        louder = np.stack(moments(solver, path, 200, 1.02))
    np.testing.assert_allclose(fine, truth, rtol=0.04)
    np.testing.assert_allclose(2 * fine - coarse, truth, rtol=2e-3)
    assert louder[1] > 1.02 * fine[1]


@pytest.mark.parametrize('name', ['ddpm', 'ddim_eta1', 'sde_dpm2'])
def test_the_loop_draws_fresh_noise(name):
    mixture, path, count = Mixture(), PATHS['vp'], 4000
    keys = jax.random.split(jax.random.key(1), count)
    x = mixture.draw(path, jax.random.key(2), count, 1.0)
    solve = jax.jit(
        lambda: loop.solve(
            mixture.denoiser(path), STOCHASTIC[name], lambda i, n: 1 - i / n, 100, x, None, keys
        )
    )
    found, (mean, variance) = np.asarray(solve()), mixture.moments(path, 0.0)
    error = (variance / count) ** 0.5
    assert abs(found.mean() - mean) < 4 * error, (found.mean(), mean)
    np.testing.assert_allclose(found.var(), variance, rtol=0.08)


WHOLE = {
    'ddim': ddim.build(),
    'ddpm': ddpm.build(),
    'dpm2': dpm_solver.build(2),
    'dpm2_not_lowered': dpm(2, corrector=True),
    'sde_dpm2': dpm_solver.build(2, 'heun', stochastic=True),
    'unipc3_bh1': unipc.build(3, 'bh1'),
    'unipc3_not_lowered': uni(3),
}
ACCURATE = {
    'dpm2': 0.01,
    'dpm2_not_lowered': 0.01,
    'unipc3_bh1': 0.01,
    'unipc3_not_lowered': 0.01,
    'ddim': 0.1,
}


@pytest.mark.parametrize('path', ['linear', 'gvp'])
@pytest.mark.parametrize('name', WHOLE)
def test_from_pure_noise_onto_the_data(name, path):
    """The walk is finite, though the log-SNR is not, and right; other numbers of steps compile nothing."""
    mixture, path = Mixture(), PATHS[path]
    x, keys = jnp.linspace(-2, 2, 5)[:, None], jax.random.split(jax.random.key(0), 5)

    @jax.jit
    def solve(steps):
        return loop.solve(mixture.denoiser(path), WHOLE[name], lambda i, n: 1 - i / n, steps, x, None, keys)

    for steps in (1, 2, 3, 4, 14, 15):
        assert np.isfinite(solve(jnp.int32(steps))).all(), steps
    if name in ACCURATE:
        exact = jax.jit(lambda: mixture.flow(path, x, jnp.float32(1), jnp.float32(0)))()
        np.testing.assert_allclose(solve(jnp.int32(100)), exact, atol=ACCURATE[name])
    assert solve._cache_size() == 1


def test_phi_joins_its_series_to_its_recurrence():
    with jax.enable_x64(True):
        z = jnp.array([-30.0, -3.0, -1.001, -0.999, -0.1, -1e-9, 0.5, 0.999, 1.001, 4.0])
        nodes, scale = np.polynomial.legendre.leggauss(40)
        s, scale = (nodes + 1) / 2, scale / 2
        for k in range(1, 5):
            integrand = np.exp((1 - s) * np.asarray(z)[:, None]) * s ** (k - 1) / math.factorial(k - 1)
            np.testing.assert_allclose(multistep.phi(k, z), integrand @ scale, rtol=1e-10)


def test_what_does_not_exist_is_refused():
    for build, word in (
        (lambda: dpm_solver.build(3), 'order is 3'),
        (lambda: dpm_solver.build(form='bh1'), "form is 'bh1'"),
        (lambda: dpm_solver.build(stochastic=True, corrector=True), 'corrector=False'),
        (lambda: unipc.build(4), 'order is 4'),
        (lambda: unipc.build(variant='bh3'), "variant is 'bh3'"),
        (lambda: unipc.build(predict='velocity'), "predict is 'velocity'"),
        (lambda: ddpm.build('small'), "variance is 'small'"),
        (lambda: ddpm.build('learned', learned_variance=False), 'learned_variance=True'),
        (lambda: ddim.build(-1.0), 'eta is -1.0'),
        (lambda: corrected(ddim.build(1.0), 1), 'takes back fresh noise'),
        (lambda: corrected(dopri5.build(), 1), 'cannot follow'),
    ):
        with pytest.raises(ValueError, match=word):
            build()
