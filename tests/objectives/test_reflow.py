"""Reflow: what it trains on, and that the flow of a mixture bends less for it and needs fewer steps."""

import functools

import jax
import jax.numpy as jnp
import modes
import numpy as np
import pytest
from given import FOLDED, FROZEN, LATENTS
from golden.seeded import normal
from modes import network

from jaxgen.diffusion import path, prediction
from jaxgen.objectives import diffusion, reflow

LINEAR = path.build('linear')
VELOCITY = prediction.build('velocity', 'unit', path=LINEAR)


def test_trains_on_the_pairs_given():
    seen = {}

    def network(params, x, t, cond, train):
        seen.update(x=x, t=t)
        return params, {}, None

    built = reflow.build({'model': network}, LINEAR, VELOCITY, FOLDED)
    noise, latents = jnp.asarray(normal('noise', (3, 4))), jnp.asarray(normal('latents', (3, 4)))
    batch, keys = {'noise': noise, 'latents': latents}, jax.random.split(jax.random.key(0), 3)
    total, weight, _, _ = built.phases[0].loss({'model': jnp.zeros((3, 4))}, {}, FROZEN, batch, keys, 0)
    t = seen['t'][:, None]
    assert len(np.unique(t)) == 3
    np.testing.assert_allclose(seen['x'], (1 - t) * latents + t * noise, atol=1e-6)
    np.testing.assert_allclose(total, ((noise - latents) ** 2).mean(1).sum(), rtol=1e-5)
    assert weight == 3 and built.reads == ('noise', 'latents')


def test_one_step_distillation_trains_at_the_noise_alone():
    seen = {}

    def network(params, x, t, cond, train):
        seen.update(t=t)
        return x, {}, None

    built = reflow.build({'model': network}, LINEAR, VELOCITY, FOLDED, low=1.0, high=1.0)
    batch = {'noise': jnp.ones((5, 2)), 'latents': jnp.zeros((5, 2))}
    built.phases[0].loss({'model': None}, {}, FROZEN, batch, jax.random.split(jax.random.key(0), 5), 0)
    assert (seen['t'] == 1).all()


@pytest.mark.parametrize(
    'walk, predict, message',
    [
        (path.build('gvp'), VELOCITY, "set path.name='linear'"),
        (LINEAR, prediction.Prediction('noise', 'unit', learned_variance=True), 'learned_variance=False'),
    ],
)
def test_what_does_not_fit_is_refused(walk, predict, message):
    with pytest.raises(ValueError, match=message):
        reflow.build({'model': None}, walk, predict, FOLDED)


STEPS, PAIRS, FINE = 1500, 4096, 64


def flow(params, noise, steps):
    """Where so many Euler steps take the noise, and all the places on the way, from noise on."""

    def step(x, index):
        t = jnp.full(len(x), 1 - index / steps)
        return x - network(params, x, t, {})[0] / steps, x

    return jax.lax.scan(step, noise, jnp.arange(steps, dtype=jnp.float32))


@jax.jit
def bend(params, noise):
    """The paper's S: how far the velocity along the flow's own paths is from their chords, squared."""
    ends, places = flow(params, noise, FINE)
    t = jnp.repeat(1 - jnp.arange(FINE) / FINE, len(noise))
    velocities, _, _ = network(params, places.reshape(-1, 2), t, {})
    return ((velocities.reshape(places.shape) - (noise - ends)) ** 2).sum(-1).mean()


@functools.partial(jax.jit, static_argnums=2)
def miss(params, noise, steps):
    """How far from the modes so many steps end."""
    return modes.miss(flow(params, noise, steps)[0])


def test_reflow_straightens_the_flow_of_a_mixture():
    objective = diffusion.build({'model': network}, LINEAR, VELOCITY, FOLDED, LATENTS, drop=0.0)
    first = modes.trained(objective.phases[0].loss, modes.data, STEPS)
    noise = jax.random.normal(jax.random.key(11), (PAIRS, 2))
    latents, _ = jax.jit(flow, static_argnums=2)(first, noise, FINE)

    def pairs(key):
        rows = jax.random.randint(key, (modes.BATCH,), 0, PAIRS)
        return {'noise': noise[rows], 'latents': latents[rows]}

    objective = reflow.build({'model': network}, LINEAR, VELOCITY, FOLDED)
    second = modes.trained(objective.phases[0].loss, pairs, STEPS, first)
    new = jax.random.normal(jax.random.key(12), (1024, 2))
    before, after = ([float(miss(params, new, n)) for n in (1, 2, FINE)] for params in (first, second))
    bends = [float(bend(params, new)) for params in (first, second)]
    print(f'miss at 1, 2, {FINE} steps: {before} -> {after}; bend: {bends[0]:.3f} -> {bends[1]:.3f}')
    assert bends[1] < bends[0] / 10
    assert after[0] < before[0] / 5 and after[1] < before[1] / 2
    assert after[2] < 0.25  # the new flow still ends at the modes
