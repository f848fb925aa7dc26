"""Solvers by their order on a flow with a closed form, and by agreement with the public schedulers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import loop, spacing
from jaxgen.diffusion import path as paths
from jaxgen.diffusion.denoiser import Denoiser, network_denoiser
from jaxgen.diffusion.prediction import Prediction
from jaxgen.diffusion.solvers import ddim, euler, heun

MEAN, SPREAD = 0.7, 0.4


def gaussian_flow(path, prediction) -> tuple[Denoiser, callable]:
    """The exact denoiser where data is N(MEAN, SPREAD^2), and the flow's exact map between times."""

    def network(x, t, cond):
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
        z = (x - alpha * MEAN) / jnp.sqrt((alpha * SPREAD) ** 2 + sigma**2)
        data = MEAN + alpha * SPREAD**2 / jnp.sqrt((alpha * SPREAD) ** 2 + sigma**2) * z
        noise = (x - alpha * data) / sigma
        return prediction.target(path, data, noise, t), {}, None

    def exact(x, t, t_next):
        def scale(s):
            return path.alpha(s) * MEAN, jnp.sqrt((path.alpha(s) * SPREAD) ** 2 + path.sigma(s) ** 2)

        (mean, spread), (mean_next, spread_next) = scale(t), scale(t_next)
        return mean_next + spread_next * (x - mean) / spread

    return network_denoiser(network, path, prediction), exact


@pytest.mark.parametrize('path', [paths.Linear(), paths.Gvp()], ids=['linear', 'gvp'])
@pytest.mark.parametrize(
    'solver, order', [(euler.build(), 1), (heun.build(), 2), (ddim.build(), 1)], ids=['euler', 'heun', 'ddim']
)
def test_order_of_convergence(path, solver, order):
    with jax.enable_x64(True):
        denoiser, exact = gaussian_flow(path, Prediction('velocity', 'unit'))
        first, last = jnp.float64(0.9), jnp.float64(0.2)
        x = jnp.linspace(-2, 2, 5)[:, None]
        keys = jax.random.split(jax.random.key(0), 5)

        def error(steps):
            def space(i, n):
                return first + (last - first) * i / n

            found = loop.solve(denoiser, solver, space, steps, x, None, keys)
            return float(jnp.abs(found - exact(x, first, last)).max())

        slope = np.log2(error(32) / error(64))
        assert abs(slope - order) < 0.2, slope


def test_ddim_with_noise_keeps_the_marginal():
    path, prediction = paths.VariancePreserving(), Prediction('noise', 'unit')
    denoiser, _ = gaussian_flow(path, prediction)
    keys = jax.random.split(jax.random.key(1), 4000)
    x = jax.random.normal(jax.random.key(2), (4000, 1))
    found = jax.jit(lambda: loop.solve(denoiser, ddim.build(1.0), spacing.uniform, 100, x, None, keys))()
    assert abs(float(found.mean()) - MEAN) < 0.03 and abs(float(found.std()) - SPREAD) < 0.03


def test_steps_are_traced_and_a_fixed_count_has_gradients():
    denoiser, _ = gaussian_flow(paths.Linear(), Prediction('velocity', 'unit'))
    keys, x = jax.random.split(jax.random.key(0), 3), jnp.ones((3, 1))
    solve = jax.jit(
        lambda n, shift: loop.solve(
            denoiser, heun.build(), lambda i, m: spacing.uniform(i, m, shift), n, x, None, keys
        )
    )
    for steps in (3, 7):
        solve(jnp.int32(steps), jnp.float32(steps))
    assert solve._cache_size() == 1

    def end(x, steps):
        return loop.solve(denoiser, euler.build(), spacing.uniform, steps, x, None, keys)

    np.testing.assert_allclose(end(x, 5), jax.jit(end)(x, jnp.int32(5)), rtol=1e-6)
    gradient = jax.grad(lambda x: end(x, 5).sum())(x)
    np.testing.assert_allclose(gradient, (end(x + 1e-2, 5) - end(x - 1e-2, 5)) / 2e-2, rtol=1e-3)


@pytest.mark.parity
@pytest.mark.parametrize('betas', ['linear', 'scaled_linear'])
def test_ddim_follows_diffusers(betas):
    diffusers, torch = pytest.importorskip('diffusers'), pytest.importorskip('torch')
    scheduler = diffusers.DDIMScheduler(
        1000,
        1e-4,
        2e-2,
        beta_schedule=betas,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing='trailing',
    )
    scheduler.set_timesteps(20)
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 4)).astype(np.float32), rng.normal(size=(4, 4)).astype(np.float32) / 4
    theirs = torch.tensor(x)
    for step in scheduler.timesteps:
        out = np.sin(theirs.numpy() @ weight + float(step) / 300)
        theirs = scheduler.step(torch.tensor(out), step, theirs, eta=0.0).prev_sample
    path, prediction = paths.VariancePreserving(betas), Prediction('noise', 'steps')
    denoiser = network_denoiser(
        lambda x, t, cond: (jnp.sin(x @ weight + t[:, None] / 300), {}, None), path, prediction
    )
    ours = loop.solve(
        denoiser,
        ddim.build(),
        spacing.uniform,
        20,
        jnp.asarray(x),
        None,
        jax.random.split(jax.random.key(0), 2),
    )
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4 * np.abs(theirs.numpy()).max())


@pytest.mark.parity
@pytest.mark.parametrize(
    'solver, name',
    [(euler.build(), 'FlowMatchEulerDiscreteScheduler'), (heun.build(), 'FlowMatchHeunDiscreteScheduler')],
)
def test_flow_follows_diffusers(solver, name):
    diffusers, torch = pytest.importorskip('diffusers'), pytest.importorskip('torch')
    scheduler = getattr(diffusers, name)(shift=1.0)
    scheduler.set_timesteps(10)
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 4)).astype(np.float32), rng.normal(size=(4, 4)).astype(np.float32) / 4
    theirs = torch.tensor(x)
    for step in scheduler.timesteps:
        out = np.sin(theirs.numpy() @ weight + float(step) / 1000)
        theirs = scheduler.step(torch.tensor(out), step, theirs).prev_sample
    sigmas = jnp.asarray(
        dict.fromkeys(scheduler.sigmas.tolist()) and sorted(set(scheduler.sigmas.tolist()))[::-1]
    )
    denoiser = network_denoiser(
        lambda x, t, cond: (jnp.sin(x @ weight + t[:, None] / 1000), {}, None),
        paths.Linear(),
        Prediction('velocity', 'thousand'),
    )
    ours = loop.solve(
        denoiser,
        solver,
        lambda i, n: sigmas[i],
        10,
        jnp.asarray(x),
        None,
        jax.random.split(jax.random.key(0), 2),
    )
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4 * np.abs(theirs.numpy()).max())
