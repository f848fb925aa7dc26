"""SiT's SDE and EDM's stochastic sampler: the authors' own walks, and the right mean and variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.mixture import Mixture
from golden import make_stochastic as golden
from golden import seeded

from jaxgen import keys
from jaxgen.diffusion import loop, sampler
from jaxgen.diffusion import path as paths
from jaxgen.diffusion.denoiser import network_denoiser
from jaxgen.diffusion.prediction import Prediction
from jaxgen.diffusion.solvers import edm, sde
from jaxgen.diffusion.spacings import karras

PATHS = {
    'Linear': paths.Linear(),
    'GVP': paths.Gvp(),
    'VP': paths.ContinuousVariancePreserving(),
    'EDM': paths.VarianceExploding(),
}
STORED = seeded.stored('stochastic')


def walk(path, prediction, solver, spacing, monkeypatch):
    """Our sampler's loop over the authors' noise."""
    monkeypatch.setattr(keys, 'fold', lambda keys, purpose: keys)
    monkeypatch.setattr(keys, 'split_each', lambda keys, step: keys[step])
    monkeypatch.setattr(keys, 'draw', lambda draw, noise, shape: noise)
    made = sampler.build({'model': None}, path, prediction, solver, (4,), 4, spacing, golden.STEPS)
    scale = path.sigma_max if prediction.output == 'data' else 0  # EDM's network reads sigma, SiT's t

    def network(x, t, cond):
        return golden.network(x, scale * t if scale else t, jnp.sin, golden.weight()), {}, None

    def times(i, steps):
        return made.time(i, steps, made.defaults)

    noise = jnp.stack([golden.noise(step) for step in range(golden.STEPS)])
    x = golden.start() * (scale or 1)
    denoiser = network_denoiser(network, path, prediction)
    return jax.jit(lambda: loop.solve(denoiser, solver, times, golden.STEPS, x, None, noise))()


@pytest.mark.parametrize('case', golden.SIT, ids=golden.name)
def test_sde_walks_as_sits_own_code(case, monkeypatch):
    path, prediction, form, norm, method, last_step = case
    form = {'inccreasing-decreasing': 'increasing_decreasing'}.get(form, form.lower())
    with jax.enable_x64(True):
        solver = sde.build(PATHS[path], method.lower(), form, norm, str(last_step).lower())
        ours = walk(PATHS[path], Prediction(prediction, 'reversed'), solver, None, monkeypatch)
    # Their times are float32.
    assert seeded.relative_error(ours, STORED[golden.name(case)]) < 1e-4


@pytest.mark.parametrize('case', golden.EDM, ids=golden.name)
def test_churn_walks_as_edms_own_code(case, monkeypatch):
    path = PATHS['EDM']
    with jax.enable_x64(True):
        solver, spacing = edm.build(path, *case), karras.build(path)
        ours = walk(path, Prediction('data', 'unit'), solver, spacing, monkeypatch)
    assert seeded.relative_error(ours, STORED[golden.name(case)]) < 1e-5


SOLVERS = {
    'sbdm': ('Linear', lambda path: sde.build(path)),
    'constant': ('GVP', lambda path: sde.build(path, 'heun', 'constant')),
    'decreasing': ('VP', lambda path: sde.build(path, 'euler', 'decreasing', 2.0)),
    'churn': ('EDM', lambda path: edm.build(path, 40.0)),
    'churn on a line': ('Linear', lambda path: edm.build(path, 40.0)),
}


def errors(name):
    """How far mean and variance are off after the walk from exact samples, in the true spread."""
    (path, build), mixture = SOLVERS[name], Mixture()
    path = PATHS[path]
    first, last = (0.02, 0.003) if path == PATHS['EDM'] else (0.8, 0.15)
    x = mixture.draw(path, jax.random.key(0), 20_000, first)
    each = jax.random.split(jax.random.key(1), len(x))

    def times(i, steps):
        return first * (last / first) ** (i / steps)

    @jax.jit
    def run(steps):
        return loop.solve(mixture.denoiser(path), build(path), times, steps, x, None, each)

    end = np.asarray(run(jnp.int32(100)))
    mean, variance = mixture.moments(path, last)
    return abs(end.mean() - mean[0]) / variance[0] ** 0.5, abs(end.var() / variance[0] - 1)


@pytest.mark.parametrize('name', SOLVERS)
def test_mean_and_variance(name):
    mean, variance = errors(name)
    assert mean < 0.03 and variance < 0.04, (mean, variance)


@pytest.mark.parametrize('name', ['sbdm', 'churn'])
def test_wrongly_scaled_noise_would_be_seen(name, monkeypatch):
    draw = keys.draw
    monkeypatch.setattr(keys, 'draw', lambda *arguments: 1.2 * draw(*arguments))
    assert errors(name)[1] > 0.08


@pytest.mark.parametrize('last_step', sde.LAST_STEPS)
def test_every_last_step_lands_on_the_data(last_step):
    mixture, path, prediction = Mixture(), paths.Linear(), Prediction('noise', 'unit')
    solver = sde.build(path, last_step=last_step)
    made = sampler.build({'model': None}, path, prediction, solver, (1,), 1)
    knobs, each = made.knobs(), jax.random.split(jax.random.key(0), 5000)
    assert float(knobs['begin']) == np.float32(0.999)  # where alpha is 0 neither noise nor SBDM has a meaning
    x = jax.random.normal(jax.random.key(1), (5000, 1))

    @jax.jit
    def run(steps):
        def times(i, steps):
            return made.time(i, steps, knobs)

        return loop.solve(mixture.denoiser(path, prediction), solver, times, steps, x, None, each)

    end = np.asarray(run(jnp.int32(150)))
    mean, variance = mixture.moments(path, 0.0)
    assert abs(end.mean() - mean[0]) < 0.06 and abs(end.var() / variance[0] - 1) < 0.08


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'method': 'rk4'}, 'method'),
        ({'diffusion': 'SBDM'}, 'diffusion'),
        ({'last_step': 'Mean'}, 'last_step'),
    ],
    ids=str,
)
def test_what_it_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        sde.build(paths.Linear(), **settings)


def test_churn_out_of_order_is_refused():
    with pytest.raises(ValueError, match='churn_min'):
        edm.build(paths.VarianceExploding(), churn_min=2.0, churn_max=1.0)


@pytest.mark.parametrize('path', [paths.VariancePreserving(), paths.ContinuousVariancePreserving()])
def test_churn_stays_on_a_path_that_ends(path):
    seen = []

    def network(x, t, cond):
        seen.append(t)
        return x, {}, None

    denoiser = network_denoiser(network, path, Prediction('noise', 'unit'))
    each = jax.random.split(jax.random.key(0), 1)
    times = jnp.asarray([1.0, 0.9])
    with jax.disable_jit():
        loop.solve(denoiser, edm.build(path, 40.0), lambda i, n: times[i], 1, jnp.ones((1, 2)), None, each)
    assert float(max(seen)[0]) <= 1
