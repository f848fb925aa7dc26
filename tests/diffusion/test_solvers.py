"""One-step solvers: walks equal to the public schedulers' in the same network; what their loop promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.mixture import VELOCITY, Mixture

from jaxgen.diffusion import loop
from jaxgen.diffusion import path as paths
from jaxgen.diffusion.denoiser import network_denoiser
from jaxgen.diffusion.prediction import Prediction
from jaxgen.diffusion.solvers import ddpm, edm, euler, heun
from jaxgen.diffusion.spacings import karras, shifted, uniform

RNG = np.random.default_rng(0)
X, WEIGHT = RNG.normal(size=(2, 4)).astype(np.float32), RNG.normal(size=(4, 4)).astype(np.float32) / 4


def test_steps_are_traced_and_a_fixed_count_has_gradients():
    denoiser = Mixture().denoiser(paths.Linear(), VELOCITY)
    keys, x = jax.random.split(jax.random.key(0), 3), jnp.ones((3, 1))

    @jax.jit
    def solve(steps, shift):
        def times(i, steps):
            return shifted(uniform.uniform(i, steps), shift)

        return loop.solve(denoiser, heun.build(), times, steps, x, None, keys)

    for steps in (3, 7):
        solve(jnp.int32(steps), jnp.float32(steps))
    assert solve._cache_size() == 1

    def end(x, steps):
        return loop.solve(denoiser, euler.build(), uniform.uniform, steps, x, None, keys)

    np.testing.assert_allclose(end(x, 5), jax.jit(end)(x, jnp.int32(5)), rtol=1e-6)
    gradient = jax.grad(lambda x: end(x, 5).sum())(x)
    np.testing.assert_allclose(gradient, (end(x + 1e-2, 5) - end(x - 1e-2, 5)) / 2e-2, rtol=1e-3)


def walk(network, solver, path, prediction, times, steps, x):
    """Ours at the given times, or at a function of the step."""
    denoiser = network_denoiser(lambda x, t, cond: (network(x, t[:, None], jnp), {}, None), path, prediction)
    place = times if callable(times) else lambda i, n: jnp.asarray(times)[i]
    keys = jax.random.split(jax.random.key(0), len(x))
    return np.asarray(loop.solve(denoiser, solver, place, steps, jnp.asarray(x), None, keys))


def smooth(x, t, library):
    return library.sin(x @ WEIGHT + t / 1000)


@pytest.mark.parity
@pytest.mark.parametrize('steps', [4, 10])
@pytest.mark.parametrize('shift', [1.0, 3.0])
@pytest.mark.parametrize(
    'solver, name',
    [(euler.build(), 'FlowMatchEulerDiscreteScheduler'), (heun.build(), 'FlowMatchHeunDiscreteScheduler')],
    ids=['euler', 'heun'],
)
def test_flow_follows_diffusers(solver, name, shift, steps):
    diffusers, torch = pytest.importorskip('diffusers'), pytest.importorskip('torch')
    scheduler = getattr(diffusers, name)(shift=shift)
    scheduler.set_timesteps(steps)
    theirs = torch.tensor(X)
    for step in scheduler.timesteps:
        theirs = scheduler.step(torch.tensor(smooth(theirs.numpy(), float(step), np)), step, theirs)[0]
    # Their grid ends at the first training step, their Heun lists times twice: ours is given their times.
    times = sorted(set(scheduler.sigmas.tolist()), reverse=True)
    ours = walk(smooth, solver, paths.Linear(), Prediction('velocity', 'thousand'), times, steps, X)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4 * np.abs(theirs.numpy()).max())


@pytest.mark.parity
@pytest.mark.parametrize('steps', [6, 18])
@pytest.mark.parametrize('sigma_max', [80.0, 20.0])
def test_euler_follows_diffusers_edm(sigma_max, steps):
    """With EDM's scalings, its time for the network and its steps, all of them ours."""
    diffusers, torch = pytest.importorskip('diffusers'), pytest.importorskip('torch')
    scheduler = diffusers.EDMEulerScheduler(sigma_max=sigma_max)
    scheduler.set_timesteps(steps)
    path = paths.VarianceExploding()
    spacing = karras.build(path, sigma_max=sigma_max)

    def network(x, t, library):
        return library.sin(x @ WEIGHT + t)

    theirs = torch.tensor(X) * sigma_max
    for step in scheduler.timesteps:
        seen = scheduler.scale_model_input(theirs, step)
        output = torch.tensor(network(seen.numpy(), float(step), np))
        theirs = scheduler.step(output, step, theirs)[0]

    def times(i, steps):
        return spacing.time(i, steps, spacing.knobs)

    prediction = Prediction('edm', 'log_sigma')
    ours = walk(network, euler.build(), path, prediction, times, steps, X * sigma_max)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4 * np.abs(theirs.numpy()).max())


@pytest.mark.parametrize(
    'build',
    [heun.build, lambda: edm.build(paths.Linear()), lambda: ddpm.build('fixed_large')],
    ids=['heun', 'edm', 'ddpm'],
)
def test_a_rounding_above_the_data_is_the_data(build):
    denoiser, keys = Mixture().denoiser(paths.Linear()), jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def end(last):
        x = jnp.linspace(-1, 1, 3)[:, None]
        return loop.solve(denoiser, build(), lambda i, n: jnp.where(i < 1, 0.5, last), 1, x, None, keys)

    np.testing.assert_allclose(end(3e-8), end(0.0), atol=1e-6)
