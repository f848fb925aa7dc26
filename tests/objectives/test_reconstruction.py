"""What a tokenizer's training minimises, against its definitions; and that all of it trains."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from configurations import configuration
from golden.seeded import normal

from jaxgen import recipe
from jaxgen.data.pipeline import batches
from jaxgen.jobs import train
from jaxgen.objectives import reconstruction
from jaxgen.objectives.fidelity import frechet, moments, psnr, ssim
from jaxgen.objectives.reconstruction import Critic, Judge
from jaxgen.program import assemble
from jaxgen.training import sharding
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.step import number
from jaxgen.training.sums import add, means


def test_psnr_and_ssim():
    x, y = (0.5 + 0.2 * np.tanh(normal(name, (1, 14, 13, 1))).astype(np.float64) for name in 'xy')
    error = ((x - y) ** 2).mean()
    np.testing.assert_allclose(psnr(jnp.float32(x), jnp.float32(y)), [10 * np.log10(1 / error)], rtol=1e-4)
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(weights, weights) / weights.sum() ** 2
    values = []
    for row in range(4):
        for column in range(3):
            a, b = (p[0, row : row + 11, column : column + 11, 0] for p in (x, y))
            of_a, of_b = (window * a).sum(), (window * b).sum()
            v_a, v_b = (window * (a - of_a) ** 2).sum(), (window * (b - of_b) ** 2).sum()
            both = (window * (a - of_a) * (b - of_b)).sum()
            top = (2 * of_a * of_b + 1e-4) * (2 * both + 9e-4)
            values.append(top / ((of_a**2 + of_b**2 + 1e-4) * (v_a + v_b + 9e-4)))
    np.testing.assert_allclose(ssim(jnp.float32(x), jnp.float32(y)), [np.mean(values)], rtol=1e-4)
    assert ssim(jnp.float32(x), jnp.float32(x)) == pytest.approx(1, abs=1e-6)


def test_frechet_distance():
    """Of all features, and of batches of them, by the matrix square root."""
    one, other = (1 + scale * normal(name, (50, 6)) for name, scale in (('one', 1.0), ('other', 0.5)))
    covariances = [np.cov(features, rowvar=False, bias=True) for features in (one, other)]
    common = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * common)
    sums = {}
    for rows in (slice(0, 20), slice(20, 50)):
        sides = {'a': moments(jnp.float32(one[rows])), 'b': moments(jnp.float32(other[rows]))}
        sums = add(sums, 'x', {f'{side}_{name}': pair for side in 'ab' for name, pair in sides[side].items()})
    found = means(sums)
    sides = [{name: found[f'x/{side}_{name}'] for name in ('mean', 'products')} for side in 'ab']
    assert frechet(*sides) == pytest.approx(expected, rel=1e-4)
    assert frechet(sides[0], sides[0]) == pytest.approx(0, abs=1e-6)


def linear(params, x):
    """A discriminator of which all is known: one score a row."""
    return jnp.einsum('bhwc,c->bh', x, params)


def test_hinge_r1_and_lecam():
    known = {'discriminator': jnp.asarray([1.0, -2.0, 0.5])}
    real, made = (jnp.asarray(normal(name, (4, 2, 2, 3))) for name in ('real', 'made'))
    of_real, of_made = (np.asarray(linear(known['discriminator'], x)) for x in (real, made))
    anchors = jnp.asarray([0.3, -0.2])
    loss, after, metrics = Critic(linear, r1=2.0, lecam=0.5).loss(known, real, made, anchors)
    hinge = 0.5 * (np.maximum(1 - of_real, 0) + np.maximum(1 + of_made, 0)).mean(-1)
    slope = np.full(4, 2 * 2 * (1 + 4 + 0.25) / 4)  # each score's share is a half
    held = np.maximum(of_real + 0.2, 0) ** 2 + np.maximum(0.3 - of_made, 0) ** 2
    np.testing.assert_allclose(metrics['slope'], slope, rtol=1e-5)
    np.testing.assert_allclose(loss, hinge + slope + 0.5 * held.mean(-1), rtol=1e-5)
    np.testing.assert_allclose(
        after, [0.297 + 0.01 * of_real.mean(), -0.198 + 0.01 * of_made.mean()], rtol=1e-5
    )
    np.testing.assert_allclose(Critic(linear, 0, 0).doubts(known, made), -of_made.mean(-1), rtol=1e-5)


def test_the_adaptive_weight():
    """The quotient of the two gradients by the last layer, as plain differentiation has them."""
    known = {
        'discriminator': jnp.asarray([1.0, -2.0, 0.5]),
        'tokenizer': {'last': jnp.asarray(normal('k', (2, 3)))},
    }
    maps, images = (jnp.asarray(normal('z', (4, 4, 4, 2))),), jnp.asarray(normal('x', (4, 4, 4, 3)))
    tokenizer = types.SimpleNamespace(
        last=('last',), pixels=lambda params, z: z @ params['tokenizer']['last']
    )
    judge, critic = Judge({}, 1.0, 0.5, 0.0), Critic(linear, 0, 0)

    def length(cost):
        return jnp.linalg.norm(
            jax.grad(lambda kernel: cost(maps[0] @ kernel).sum())(known['tokenizer']['last'])
        )

    misses = lambda y: (jnp.abs(y - images) + 0.5 * (y - images) ** 2).mean((1, 2, 3))  # noqa: E731
    expected = length(misses) / (length(lambda y: -linear(known['discriminator'], y).mean(-1)) + 1e-4)
    found = reconstruction._balance(judge, critic, tokenizer, known, maps, images)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_smaller_pictures_are_held_to_the_smaller_image():
    images = jnp.asarray(normal('x', (2, 4, 4, 3)))
    small = images.reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
    judge = Judge({}, 1.0, 0.0, 0.0)
    np.testing.assert_allclose(judge({}, (small, images), images)[0], 0, atol=1e-6)
    np.testing.assert_allclose(judge({}, (small + 1, images), images)[0], 0.5, rtol=1e-5)


def tiny(steps, **changes):
    config = configuration('vq_shapes')
    config.train.update(steps=steps, save_every=steps, held_out_every=steps, log_every=1)
    for section, settings in changes.items():
        config[section] = settings if 'name' in settings else {**config[section].to_dict(), **settings}
    return recipe.build(config)


def test_both_phases_train_and_the_codebook_is_what_its_state_says(tmp_path, monkeypatch):
    monkeypatch.setenv('JAXGEN_DATA_DIR', str(tmp_path / 'data'))
    whole = train.run(tiny(4), tmp_path / 'whole')
    assert {'autoencoder/psnr', 'autoencoder/usage', 'discriminator/slope'} <= set(whole['metrics'])
    assert whole['metrics']['held_out/frechet'] > 0 and 0 < whole['metrics']['held_out/usage'] <= 1
    program = assemble(tiny(4))
    with Checkpoints(tmp_path / 'whole' / 'checkpoints', read_only=True) as checkpoints:
        trained = checkpoints.restore(None, program.abstract.trees())
    state, fresh = trained['state']['tokenizer'], program.fresh()
    assert state['step'] == 4
    table = trained['params']['tokenizer']['bottleneck']['codebook']['table']
    np.testing.assert_allclose(table, state['table'], rtol=1e-6)  # as the state has written it
    for name in ('tokenizer', 'discriminator'):
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), trained['params'][name], fresh.params[name])
        assert min(jax.tree.leaves(moved)) > 0
    assert set(trained['ema']) == {'tokenizer'} and (np.abs(trained['state']['anchors']) > 0).all()


@pytest.mark.usefixtures('split_small')
@pytest.mark.parametrize('mesh', [{'data': 2, 'fsdp': 4}, pytest.param({'data': 8}, marks=pytest.mark.slow)])
def test_steps_on_eight_devices_are_those_of_one(mesh, tmp_path, monkeypatch):
    """Both phases, with k-means, running averages and restarts."""
    monkeypatch.setenv('JAXGEN_DATA_DIR', str(tmp_path / 'data'))
    ends = []
    for across in ({'data': 1}, mesh):
        # Adam divides by the gradient's size; a floor keeps rounding of what is zero from counting.
        optimizer = {'name': 'adamw', 'learning_rate': 1e-3, 'options': {'eps': 1e-3}}
        built = tiny(4, optimizer=optimizer, mesh=across)
        program = assemble(built, jax.devices()[: math.prod(across.values())])
        state, frozen = program.fresh(), program.frozen()
        source = batches(built.source('train'), built.conditioner.arrays, seed=0, batch=8, threads=0)
        for step in range(4):
            with jax.set_mesh(program.mesh):
                batch = sharding.to_global(next(source), program.mesh)
                for phase in built.objective.phases:
                    if phase.when(step):
                        state, metrics = program.steps[phase.name](
                            state, frozen, batch, jax.random.key(0), number(step)
                        )
        ends.append(jax.device_get((state.params, state.state, state.ema)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *ends)


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'tokenizer': {'name': 'pixels'}}, 'nothing to train'),
        ({'train': {'steps': 2, 'batch': 16, 'accumulate': 2}}, 'set train.accumulate=1'),
        ({'networks': {}}, 'networks.discriminator.module'),
        (
            {'networks': {'discriminator': {'module': {'name': 'patch_discriminator', 'depth': 4}}}},
            'depth 4 leaves no patch',
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, said):
    config = configuration('vq_shapes')
    for section, settings in changes.items():
        config[section] = settings
    with pytest.raises(ValueError, match=said):
        assemble(recipe.build(config))


def test_without_weights_it_goes_without_lpips_and_says_so(caplog):
    caplog.set_level('INFO', 'jaxgen')
    tiny(2, objective={'perceptual': 1.0})
    assert 'No LPIPS in the loss' in caplog.text
