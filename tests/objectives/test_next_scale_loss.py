"""The loss over scales: by hand, with labels smoothed, with scales that join, and without chance held out."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden.seeded import normal

from jaxgen.conditioning import labels
from jaxgen.layers.resize import resize
from jaxgen.models import var
from jaxgen.objectives import next_scale
from jaxgen.recipe import Network
from jaxgen.tokenizers import vqgan
from jaxgen.tokenizers.bottlenecks import residual
from jaxgen.tokenizers.bottlenecks.codebook import nearest

SCALES, CODES = (1, 2, 4), 16
ENDS = np.array([1, 5, 21])


@pytest.fixture(scope='module')
def tokenizer():
    return vqgan.build(8, residual.build(CODES, 4, SCALES), widths=(8, 16), blocks=1, groups=4, attention=())


@pytest.fixture(scope='module')
def known(tokenizer):
    return tokenizer.init(jax.random.key(0))


def fake(tokenizer, seen):
    """A network that gives the same logits for all that it is told, and says what that was."""
    logits = jnp.asarray(normal('logits', (2, ENDS[-1], CODES)))

    def call(params, x, t, cond, per_layer=None, train=False):
        seen.update(x=x, t=t, cond=cond, per_layer=per_layer, train=train)
        return logits + params['bias'], {}, None

    call.module = types.SimpleNamespace(scalewise=True, drops=lambda keys: {'branches': len(keys)})
    return call, logits


def run(tokenizer, known, method='loss', step=0, **settings):
    """(total, metrics, what the network saw, its logits, codes) of two pictures."""
    seen = {}
    network, logits = fake(tokenizer, seen)
    objective = next_scale.build({'model': network}, labels.build(3), tokenizer, **settings)
    loss = objective.phases[0].loss if method == 'loss' else objective.held_out
    batch = {'image': np.uint8(40 * normal('picture', (2, 8, 8, 3)) + 127), 'label': jnp.array([0, 2])}
    keys = jax.random.split(jax.random.key(0), 2)
    params = {'model': {'bias': jnp.zeros(CODES)}}
    total, weight, _, metrics = loss(params, {}, {'networks': known}, batch, keys, jnp.int32(step))
    assert weight == 2
    codes = tokenizer.quantize(known, tokenizer.encode(known, batch, keys))
    return total / 2, metrics, seen, logits, codes


def test_it_is_the_mean_over_all_tokens(tokenizer, known):
    total, metrics, seen, logits, codes = run(tokenizer, known)
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.concatenate(codes, 1))
    np.testing.assert_allclose(total, errors.mean(), rtol=1e-5)
    np.testing.assert_allclose(seen['x'], tokenizer.teacher(known, codes), rtol=1e-5)
    assert seen['t'] is None and seen['train'] and seen['per_layer'] == {'branches': 2}
    assert set(metrics) == {'accuracy', 'error_1x1', 'error_2x2', 'error_4x4'}
    for scale, part in zip(SCALES, np.split(errors, ENDS[:-1], 1)):
        value, weight = metrics[f'error_{scale}x{scale}']
        assert weight == 2
        np.testing.assert_allclose(value / weight, part.mean(), rtol=1e-5)


def test_labels_are_smoothed_as_the_authors_loss_does(tokenizer, known):
    total, _, _, logits, codes = run(tokenizer, known, smoothing=0.2)
    target = 0.8 * jax.nn.one_hot(jnp.concatenate(codes, 1), CODES) + 0.2 / CODES
    np.testing.assert_allclose(total, optax.softmax_cross_entropy(logits, target).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ('step', 'weights'),
    [
        (0, (1, 0, 0)),
        (49, (1, 0, 0)),
        (50, (1, 0.1, 0)),
        (60, (1, 1, 0)),
        (102, (1, 1, 0.3)),
        (999, (1, 1, 1)),
    ],
)
def test_scales_join_one_by_one(tokenizer, known, step, weights):
    total, _, _, logits, codes = run(tokenizer, known, step=step, joined=100, first=1, rise=10)
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.concatenate(codes, 1))
    weights = np.repeat(weights, np.diff(ENDS, prepend=0))
    np.testing.assert_allclose(total, (errors * weights).sum(1).mean() / ENDS[-1], rtol=1e-5)


def test_held_out_leaves_chance_out(tokenizer, known):
    total, _, seen, logits, codes = run(
        tokenizer, known, 'held out', drop=0.99, smoothing=0.5, joined=100, first=1
    )
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.concatenate(codes, 1))
    np.testing.assert_allclose(total, errors.mean(), rtol=1e-5)
    assert not seen['cond']['drop'].any() and seen['per_layer'] is None and not seen['train']


def test_later_scales_make_up_for_mistakes(tokenizer, known):
    """The codes of each scale are of what the scales before, as they were told, left over."""
    told = next_scale.mistaken(0.9, jax.random.split(jax.random.key(1), 8))
    latents = jnp.asarray(normal('latents', (8, 4, 4, 4)))
    codes, plain = tokenizer.quantize(known, latents, told), tokenizer.quantize(known, latents)
    table, so_far, wrong = known['tokenizer']['bottleneck']['codebook']['table'], tokenizer.start(8), []
    for k, found in enumerate(codes):
        left = resize(latents - so_far, tokenizer.scales[k], 'area').reshape(8, -1, 4)
        np.testing.assert_array_equal(found, nearest(left, table, 'euclidean'))
        said = told(k, found)
        assert all(set(row) <= set(true) for row, true in zip(np.asarray(said), np.asarray(found)))
        wrong.append(np.asarray(said != found))
        so_far, _ = tokenizer.feedback(known, k, said, so_far)
    assert not wrong[0].any() and 0.1 < wrong[2].mean() < 0.9
    assert (codes[2] != plain[2]).any() and (codes[0] == plain[0]).all()
    rates = wrong[2].mean(1)
    assert rates.max() - rates.min() > 0.3  # every image has a share of its own


def test_another_network_than_the_model_may_train(tokenizer, known):
    network, logits = fake(tokenizer, {})
    networks = {'model': None, 'refiner': network}
    (phase,) = next_scale.build(networks, labels.build(3), tokenizer, network='refiner').phases
    batch = {'image': np.zeros((2, 8, 8, 3), np.uint8), 'label': jnp.array([0, 2])}
    keys, params = jax.random.split(jax.random.key(0), 2), {'refiner': {'bias': jnp.ones(CODES)}}
    total, *_ = phase.loss(params, {}, {'networks': known}, batch, keys, jnp.int32(0))
    codes = jnp.concatenate(tokenizer.quantize(known, tokenizer.encode(known, batch, keys)), 1)
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
    assert phase.trains == ('refiner',)
    np.testing.assert_allclose(total, errors.mean(1).sum(), rtol=1e-5)


def test_nothing_left_to_join_is_refused(tokenizer):
    with pytest.raises(ValueError, match='objective.first is 3 of 3 scales'):
        next_scale.build({}, labels.build(3), tokenizer, joined=10, first=3)


def test_a_small_network_learns_the_codes_of_two_pictures(tokenizer, known):
    network = var.build(tokenizer.scales, CODES, 4, 3, depth=2, hidden=32, heads=2, gate=0.1, drop_path=0.0)
    networks = {'model': Network(network)}
    objective = next_scale.build(networks, labels.build(3), tokenizer, drop=0.0)
    batch = {'image': np.uint8(40 * normal('picture', (2, 8, 8, 3)) + 127), 'label': jnp.array([0, 2])}
    keys = jax.random.split(jax.random.key(0), 2)
    cond = {'label': jnp.array([0, 2]), 'drop': jnp.zeros(2, bool)}
    params = {'model': network.init(jax.random.key(1), *network.blank(None, None, cond))['params']}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def learn(params):
        def step(carry, _):
            params, moments = carry

            def loss(params):
                total, weight, _, metrics = objective.phases[0].loss(
                    params, {}, {'networks': known}, batch, keys, jnp.int32(0)
                )
                return total / weight, metrics['accuracy']

            (value, accuracy), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            updates, moments = optimizer.update(gradients, moments, params)
            return (optax.apply_updates(params, updates), moments), (value, accuracy[0] / accuracy[1])

        return jax.lax.scan(step, (params, optimizer.init(params)), length=60)[1]

    values, accuracies = learn(params)
    assert abs(values[0] - np.log(CODES)) < 0.2
    assert values[-1] < 0.3 and accuracies[-1] > 0.9
