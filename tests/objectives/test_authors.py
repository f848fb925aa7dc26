"""SiT's and EDM's losses equal those of the authors' code, on the same inputs and draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from given import loss_of_example
from golden import make_edm_loss, make_sit_loss
from golden.seeded import relative_error, stored

from jaxgen.diffusion import path, prediction

SIT_PATHS = {'Linear': 'linear', 'GVP': 'gvp', 'VP': 'vp_continuous'}


def sit(monkeypatch, name, predicts, weighting):
    """The loss as SiT trains it; its times run from noise to data, and leave out ends it cannot bear."""
    walk = path.build(SIT_PATHS[name])
    velocity = predicts == 'velocity'
    ends = {'low': 1e-5} if name == 'VP' else {} if velocity else {'low': 1e-3, 'high': 1 - 1e-3}
    # Velocities have one loss in SiT, whatever the weighting is called.
    settings = {**ends, 'weighting': 'none' if velocity else weighting}
    loss = loss_of_example(
        monkeypatch, walk, prediction.build(predicts, 'reversed', path=walk), {}, **settings
    )
    data, noise, output = (jnp.asarray(array) for array in make_sit_loss.inputs().values())
    return loss, (output, data, noise, jnp.float32(1 - make_sit_loss.UNIFORM))


@pytest.mark.parametrize('name, predicts, weighting', make_sit_loss.CASES)
def test_losses_equal_sits(monkeypatch, name, predicts, weighting):
    loss, arrays = sit(monkeypatch, name, predicts, weighting)
    theirs = stored('sit_loss')['_'.join((name, predicts, weighting))]
    np.testing.assert_allclose(jax.vmap(loss)(*arrays)[0], theirs, rtol=2e-4)


def test_gradient_equals_sits(monkeypatch):
    loss, arrays = sit(monkeypatch, *make_sit_loss.CASES[-1])
    ours = jax.vmap(jax.grad(lambda *given: loss(*given)[0]))(*arrays)
    for mine, theirs in zip(ours, stored('sit_loss')['by_output']):
        assert relative_error(mine, theirs) < 2e-4


@pytest.mark.parametrize('output', ['edm', 'data'])
def test_loss_and_gradient_equal_edms(monkeypatch, output):
    """As EDM has it, a network of F; and as its weighting says it, a network of the denoised picture."""
    walk, theirs, seen = path.build('ve'), stored('edm_loss'), {}
    predict = prediction.build(output, 'log_sigma', path=walk)
    settings = {'times': 'log_normal', 'mean': -1.2, 'spread': 1.2, 'weighting': 'edm'}
    loss = loss_of_example(monkeypatch, walk, predict, seen, **settings)
    data, noise, given = (jnp.asarray(array) for array in make_edm_loss.inputs().values())

    def total(f, data, noise, normal):
        sigma = jnp.exp(-1.2 + 1.2 * normal)
        variance = sigma**2 + 0.25
        denoised = 0.25 / variance * (data + sigma * noise) + 0.5 * sigma / jnp.sqrt(variance) * f
        value = loss(denoised if output == 'data' else f, data, noise, normal)[0]
        return value, (seen['x'][0], seen['t'][0])

    arrays = given, data, noise, jnp.asarray(make_edm_loss.NORMAL)
    (values, (x, level)), gradients = jax.vmap(jax.value_and_grad(total, has_aux=True))(*arrays)
    np.testing.assert_allclose(values, theirs['loss'], rtol=1e-4)
    np.testing.assert_allclose(level, theirs['noise_level'], atol=1e-5)
    for mine, reference in zip(gradients, theirs['by_output']):
        assert relative_error(mine, reference) < 2e-4
    if output == 'edm':
        assert relative_error(x, theirs['x']) < 1e-5
