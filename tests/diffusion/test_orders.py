"""One-step solvers converge at their order on a Gaussian mixture, in float64, away from the ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.mixture import Mixture, order

from jaxgen.diffusion import loop
from jaxgen.diffusion import path as paths
from jaxgen.diffusion.prediction import Prediction
from jaxgen.diffusion.solvers import Solver, dopri5, edm, euler, heun, midpoint, sde

PATHS = {
    'linear': (paths.Linear(), 0.8, 0.2),
    'gvp': (paths.Gvp(), 0.8, 0.2),
    'vp': (paths.ContinuousVariancePreserving(), 0.6, 0.2),
    've': (paths.VarianceExploding(4.0), 0.6, 0.1),
}
ORDERS = {
    'euler': (lambda path: euler.build(), 1),
    'heun': (lambda path: heun.build(), 2),
    'midpoint': (lambda path: midpoint.build(), 2),
    'edm': (lambda path: edm.build(path), 2),
}


@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('solver', ORDERS)
def test_order(solver, path):
    (path, first, last), (build, expected) = PATHS[path], ORDERS[solver]
    with jax.enable_x64(True):
        slope = order(build(path), path, first, last, steps=(32, 64, 128))
    assert abs(slope - expected) < 0.2, slope


@pytest.mark.parametrize('method, expected', [('euler', 1), ('heun', 2)])
def test_order_of_the_sde_without_noise(method, expected):
    path = paths.Linear()
    with jax.enable_x64(True):
        slope = order(sde.build(path, method, 'constant', 0.0), path)
    assert abs(slope - expected) < 0.2, slope


def test_order_is_of_the_flow_not_of_the_prediction():
    with jax.enable_x64(True):
        slope = order(heun.build(), paths.Linear(), prediction=Prediction('noise', 'unit'))
    assert abs(slope - 2) < 0.2, slope


def test_exact_flow_keeps_the_distribution_function():
    """In one dimension the flow carries quantiles to quantiles, whatever integrates it."""
    mixture, path = Mixture(), paths.Gvp()
    weights, spreads = np.asarray(mixture.weights), np.asarray(mixture.spreads)

    def below(x, t):
        alpha, sigma = path.alpha(t), path.sigma(t)
        z = (x - alpha * np.asarray(mixture.means)[:, 0]) / jnp.sqrt((alpha * spreads) ** 2 + sigma**2)
        return (weights * jax.scipy.stats.norm.cdf(z)).sum(-1)

    with jax.enable_x64(True):
        x = jnp.linspace(-2, 2, 9)[:, None]
        end = jax.jit(lambda: mixture.flow(path, x, 0.9, 0.05))()
        np.testing.assert_allclose(below(end, jnp.float64(0.05)), below(x, jnp.float64(0.9)), atol=1e-9)
        # ... and the score is the density's gradient.
        slope = jax.vmap(jax.grad(lambda x: mixture.log_density(path, x[None], 0.3)[0]))(x)
        np.testing.assert_allclose(mixture.score(path, x, 0.3), slope, rtol=1e-9)


def test_dormand_prince_is_of_order_five():
    def step(state, evaluate, t, t_next, keys):  # one step from time to time, errors not counting
        def field(t, x):
            return evaluate(x, t, None)[0].velocity

        x, _ = dopri5.integrate(field, state.x, t, t_next, 1e6, 1e6, 8, t_next - t)
        return state.replace(x=x)

    with jax.enable_x64(True):
        slope = order(Solver(lambda x: None, step), paths.Gvp(), steps=(16, 32))
    assert abs(slope - 5) < 0.2, slope


def whole(i, steps):
    return jnp.where(i < 1, 0.9, 0.1)


@pytest.mark.parametrize('tolerance', [1e-5, 1e-9])
def test_dormand_prince_keeps_its_tolerance(tolerance):
    mixture, path, solver = Mixture(), paths.Linear(), dopri5.build(tolerance, tolerance)
    with jax.enable_x64(True):
        x, keys = jnp.linspace(-2, 2, 5)[:, None], jax.random.split(jax.random.key(0), 5)
        found = jax.jit(lambda: loop.solve(mixture.denoiser(path), solver, whole, 1, x, None, keys))()
        exact = jax.jit(lambda: mixture.flow(path, x, 0.9, 0.1))()
    assert jnp.abs(found - exact).max() < 10 * tolerance


def test_dormand_prince_says_where_it_did_not_arrive():
    mixture, path = Mixture(), paths.Linear()
    keys, x = jax.random.split(jax.random.key(0), 3), jnp.ones((3, 1))

    def run(limit):
        solver = dopri5.build(1e-6, 1e-6, limit)
        return jax.jit(lambda: loop.solve(mixture.denoiser(path), solver, whole, 1, x, None, keys))()

    assert jnp.isfinite(run(100)).all() and jnp.isnan(run(3)).all()


def test_a_memory_cannot_follow_dormand_prince():
    mixture, path = Mixture(), paths.Linear()
    plain = mixture.denoiser(path)
    caching = type(plain)(lambda x, cond: jnp.zeros(len(x)), plain.denoise)
    keys, x = jax.random.split(jax.random.key(0), 3), jnp.ones((3, 1))
    with pytest.raises(ValueError, match='chooses its own steps'):
        loop.solve(caching, dopri5.build(), lambda i, n: 1 - i / n, 1, x, None, keys)
