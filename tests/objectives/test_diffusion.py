"""The denoising loss against the authors' DiT code, by hand, and by what a small network learns from it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from given import FROZEN, loss_of_example, objective
from golden import make_dit_loss
from golden.seeded import normal, stored

from jaxgen import config
from jaxgen import keys as random
from jaxgen.conditioning import labels
from jaxgen.diffusion import path, prediction
from jaxgen.diffusion.variational import variational_bound
from jaxgen.objectives import diffusion
from jaxgen.tokenizers import pixels


def ddpm():
    """DiT's path and prediction."""
    walk = path.build('vp', 'linear')
    return walk, prediction.build('noise', 'steps', True, path=walk)


@pytest.fixture
def authors_case(monkeypatch):
    """One example's loss and metrics as a function of the network's output, and the authors' numbers."""
    data, noise, outputs = (jnp.asarray(array) for array in make_dit_loss.inputs().values())
    seen = {}
    loss = loss_of_example(monkeypatch, *ddpm(), seen, times='discrete')

    def run(output, example):
        step = make_dit_loss.STEPS[example]
        results = loss(output, data[example], noise[example], jnp.float32((step + 0.5) / 1000))
        np.testing.assert_allclose(seen['t'], step, atol=1e-3)
        return results

    return outputs, run, stored('dit_loss')


@pytest.mark.parametrize('example', range(len(make_dit_loss.STEPS)))
def test_loss_and_gradient_equal_the_authors(authors_case, example):
    output, run, theirs = authors_case
    (total, parts), gradient = jax.value_and_grad(run, has_aux=True)(output[example], example)
    np.testing.assert_allclose(parts['error'], theirs['mse'][example], rtol=1e-5)
    np.testing.assert_allclose(parts['bound'], theirs['vb'][example], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(total, theirs['loss'][example], rtol=1e-4)
    # Means and variances apart, which are of unlike size; late steps' variances hardly matter to the bound.
    for ours, reference in zip(np.split(gradient, 2, -1), np.split(theirs['by_output'][example], 2, -1)):
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-9 + 1e-3 * np.abs(reference).max())


def test_bound_trains_the_variance_alone():
    walk, predict = ddpm()
    data, noise, output = (jnp.asarray(array) for array in make_dit_loss.inputs().values())
    t = jnp.float32((make_dit_loss.STEPS + 1) / 1000)
    x = path.interpolate(walk, data, noise, t)
    gradient = jax.grad(lambda out: variational_bound(predict.estimate(walk, x, t, out), data).sum())(output)
    mean, variance = jnp.split(gradient, 2, axis=-1)
    assert not mean.any()
    assert (jnp.abs(variance).max(axis=(1, 2, 3)) > 0).all()


def test_flow_matching_by_hand():
    data, keys = normal('data', (2, 4, 4, 3)), jax.random.split(jax.random.key(0), 2)
    walk = path.build('linear')
    seen = {}

    def network(params, x, t, cond, train):
        seen.update(x=x, t=t)
        return params, {}, None

    for time, sign in (('thousand', 1), ('reversed', -1)):
        loss = objective(network, walk, prediction.build('velocity', time, path=walk))
        total, weight, state, metrics = loss(
            {'model': jnp.full((2, 4, 4, 3), 0.5)},
            {'kept': 1},
            FROZEN,
            {'latents': jnp.asarray(data)},
            keys,
            0,
        )
        t = seen['t'] / 1000 if time == 'thousand' else 1 - seen['t']
        drawn = random.draw(jax.random.normal, random.fold(keys, 'noise'), (4, 4, 3))
        noisy = (1 - t)[:, None, None, None] * data + t[:, None, None, None] * drawn
        np.testing.assert_allclose(seen['x'], noisy, atol=1e-6)
        by_hand = np.mean((0.5 - sign * (drawn - data)) ** 2, axis=(1, 2, 3))
        np.testing.assert_allclose(total, by_hand.sum(), rtol=1e-5)
        assert weight == 2 and state == {'kept': 1}
        np.testing.assert_allclose(metrics['error'][0], by_hand.sum(), rtol=1e-5)
        quarters = [metrics[f'error_t{i / 4:.2f}_{(i + 1) / 4:.2f}'] for i in range(4)]
        np.testing.assert_allclose(sum(q[0] for q in quarters), by_hand.sum(), rtol=1e-5)
        assert sum(q[1] for q in quarters) == 2


def test_drops_are_drawn_apart_from_times():
    count, seen = 4096, {}

    def network(params, x, t, cond, train):
        seen.update(t=np.asarray(t), drop=np.asarray(cond['drop']))
        return jnp.zeros_like(x), {}, None

    walk = path.build('vp')
    loss = objective(network, walk, prediction.build('noise', 'unit', path=walk), drop=0.25)
    keys = jax.random.split(jax.random.key(1), count)
    loss({'model': None}, {}, FROZEN, {'latents': jnp.zeros((count, 1))}, keys, 0)
    assert abs(seen['drop'].mean() - 0.25) < 0.03
    assert abs(np.corrcoef(seen['t'], seen['drop'])[0, 1]) < 0.06


def test_draws_of_an_example_do_not_depend_on_its_batch():
    keys = jax.random.split(jax.random.key(3), 4)
    walk = path.build('linear')
    loss = objective(
        lambda params, x, t, cond, train: (jnp.sin(x) * cond['drop'][:, None], {}, None),
        walk,
        prediction.build('velocity', path=walk),
        drop=0.5,
    )
    latents = jnp.asarray(normal('data', (4, 6)))
    together = loss({'model': None}, {}, FROZEN, {'latents': latents}, keys, 0)[0]
    alone = [
        loss({'model': None}, {}, FROZEN, {'latents': latents[i : i + 1]}, keys[i : i + 1], 0)[0]
        for i in range(4)
    ]
    np.testing.assert_allclose(together, sum(alone), rtol=1e-6)


@pytest.mark.parametrize(
    'output, changes, message',
    [
        ('velocity', {'times': 'sometimes'}, 'uniform, discrete, logit_normal'),
        ('velocity', {'times': 'discrete'}, "set path.name='vp'"),
        ('data', {'weighting': 'velocity'}, r'no bound at t=0 .* the data: set objective.low=0.001'),
        ('noise', {'weighting': 'velocity'}, r'no bound at t=1 .* the noise: set objective.high=0.999'),
    ],
)
def test_what_does_not_fit_is_refused(output, changes, message):
    walk = path.build('linear')
    with pytest.raises(ValueError, match=message):
        objective(None, walk, prediction.build(output, path=walk), **changes)


@pytest.mark.parametrize(
    'output, changes',
    [
        ('data', {'weighting': 'velocity', 'floor': 0.05}),
        ('data', {'weighting': 'velocity', 'times': 'logit_normal'}),
        ('noise', {'weighting': 'velocity', 'high': 0.999}),
        ('score', {'weighting': 'likelihood', 'low': 1e-3, 'high': 0.999}),
    ],
)
def test_ends_that_are_cut_or_rare_bound_a_weighting(output, changes):
    walk = path.build('linear')
    objective(None, walk, prediction.build(output, path=walk), **changes)


@pytest.mark.parametrize('name, value', [('drop', 1.0), ('shift', 0.0), ('low', -0.1), ('gamma', 0.0)])
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f'objective.{name} is {value}'):
        config.check(diffusion.build, {name: value}, 'objective')


def test_angle_by_hand():
    latents, output, noise = (normal(name, (4, 4, 6)) for name in ('latents', 'output', 'noise'))
    velocity = noise - latents
    cosine = (output * velocity).sum(-1) / np.linalg.norm(output, axis=-1) / np.linalg.norm(velocity, axis=-1)

    def total(output, angle):
        with pytest.MonkeyPatch.context() as patch:
            walk = path.build('linear')
            loss = loss_of_example(patch, walk, prediction.build('velocity', path=walk), {}, angle=angle)
            return loss(output, jnp.asarray(latents), jnp.asarray(noise), jnp.float32(0.3))[0]

    both, alone = total(output, 0.5), total(output, 0.0)
    np.testing.assert_allclose(both - alone, 0.5 * (1 - cosine.mean()), rtol=1e-4)
    assert np.isfinite(jax.grad(total)(jnp.zeros_like(output), 0.5)).all()


def test_a_small_network_learns():
    """Without x, the best guess of the velocity, noise - data, is -data: a table by label learns it."""
    walk = path.build('linear')
    predict = prediction.build('velocity', 'thousand', path=walk)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    batch = {'image': jnp.asarray(images), 'label': jnp.arange(3)}

    def network(table, x, t, cond, train):
        return jnp.where(cond['drop'][:, None, None, None], 0, table[cond['label']]), {}, None

    loss = diffusion.build({'model': network}, walk, predict, labels.build(3), pixels.build(8)).phases[0].loss
    optimizer = optax.adam(0.02)

    def value_of(table, keys):
        return loss({'model': table}, {}, FROZEN, batch, keys, 0)[0]

    def step(carry, index):
        table, state = carry
        keys = random.split_examples(jax.random.fold_in(jax.random.key(1), index), batch['label'])
        value, gradient = jax.value_and_grad(value_of)(table, keys)
        updates, state = optimizer.update(gradient, state)
        return (table + updates, state), value / 3

    table = jnp.zeros(images.shape)
    first = (table, optimizer.init(table))
    (table, _), losses = jax.jit(lambda: jax.lax.scan(step, first, jnp.arange(200)))()
    data = images / 127.5 - 1
    assert abs(losses[:10].mean() - (1 + (data**2).mean())) < 0.08
    assert losses[-50:].mean() < 1.15
    assert np.corrcoef(-data.ravel(), table.ravel())[0, 1] > 0.9
