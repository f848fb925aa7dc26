"""The loss of hidden tokens: by hand, by schedule, everywhere, smoothed, and learned."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden.seeded import normal

from jaxgen.conditioning import labels
from jaxgen.models import maskgit
from jaxgen.objectives import masked
from jaxgen.recipe import Network
from jaxgen.tokenizers import vqgan
from jaxgen.tokenizers.bottlenecks import residual

SCALES, CODES, TOKENS = (1, 2, 4), 16, 21


@pytest.fixture(scope='module')
def tokenizer():
    return vqgan.build(8, residual.build(CODES, 4, SCALES), widths=(8, 16), blocks=1, groups=4, attention=())


@pytest.fixture(scope='module')
def known(tokenizer):
    return tokenizer.init(jax.random.key(0))


def batch():
    return {'image': np.uint8(40 * normal('picture', (2, 8, 8, 3)) + 127), 'label': jnp.array([0, 2])}


def run(tokenizer, known, method='loss', groups=1, **settings):
    """(total, weight, metrics, what the network saw, its logits, tokens) of two pictures."""
    seen = {}
    logits = jnp.asarray(normal('logits', (2, groups * TOKENS, round(CODES ** (1 / groups)))))

    def network(params, x, hidden, cond, per_layer=None, train=False):
        seen.update(x=x, hidden=hidden, cond=cond, per_layer=per_layer, train=train)
        return logits + params['bias'], {}, None

    network.module = types.SimpleNamespace(
        groups=groups, causal=False, drops=lambda keys: {'keys': len(keys)}
    )
    objective = masked.build({'model': network}, labels.build(3), tokenizer, **settings)
    loss = objective.phases[0].loss if method == 'loss' else objective.held_out
    keys = jax.random.split(jax.random.key(0), 2)
    params = {'model': {'bias': jnp.zeros(logits.shape[-1])}}
    total, weight, _, metrics = loss(params, {}, {'networks': known}, batch(), keys, jnp.int32(0))
    codes = jnp.concatenate(tokenizer.quantize(known, tokenizer.encode(known, batch(), keys)), 1)
    return total, weight, metrics, seen, logits, codes


def test_it_is_of_the_hidden_tokens_alone(tokenizer, known):
    total, weight, metrics, seen, logits, codes = run(tokenizer, known)
    hidden = np.asarray(seen['hidden'])
    assert 2 <= hidden.sum() < 2 * TOKENS and weight == hidden.sum()
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
    np.testing.assert_allclose(total, errors[hidden].sum(), rtol=1e-5)
    np.testing.assert_array_equal(seen['x'], codes)
    assert seen['train'] and seen['per_layer'] == {'keys': 2}
    assert set(metrics) == {'accuracy', 'error_1x1', 'error_2x2', 'error_4x4'}
    for scale, part, where in zip(SCALES, np.split(errors, [1, 5], 1), np.split(hidden, [1, 5], 1)):
        value, count = metrics[f'error_{scale}x{scale}']
        assert count == where.sum()
        np.testing.assert_allclose(value, part[where].sum(), rtol=1e-5)
    right = (logits.argmax(-1) == codes)[hidden].sum()
    assert metrics['accuracy'] == (right, hidden.sum())


def test_everywhere_and_smoothed(tokenizer, known):
    total, weight, _, _, logits, codes = run(tokenizer, known, everywhere=True, smoothing=0.2)
    target = 0.8 * jax.nn.one_hot(codes, CODES) + 0.2 / CODES
    np.testing.assert_allclose(total, optax.softmax_cross_entropy(logits, target).sum(), rtol=1e-5)
    assert weight == 2 * TOKENS


def test_held_out_leaves_nothing_out_of_the_condition(tokenizer, known):
    total, weight, _, seen, logits, codes = run(
        tokenizer, known, 'held out', drop=0.99, smoothing=0.5, everywhere=True
    )
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
    np.testing.assert_allclose(total, errors[np.asarray(seen['hidden'])].sum(), rtol=1e-5)
    assert not seen['cond']['drop'].any() and seen['per_layer'] is None and not seen['train']


def test_each_group_of_a_code_is_hidden_by_itself(tokenizer, known):
    _, weight, metrics, seen, _, codes = run(tokenizer, known, groups=2)
    hidden = np.asarray(seen['hidden']).reshape(2, TOKENS, 2)
    assert (hidden[..., 0] != hidden[..., 1]).any() and weight == hidden.sum()
    np.testing.assert_array_equal(seen['x'].reshape(2, TOKENS, 2)[..., 0], codes % 4)
    np.testing.assert_array_equal(seen['x'].reshape(2, TOKENS, 2)[..., 1], codes // 4)
    assert metrics['error_2x2'][1] == hidden[:, 1:5].sum()


@pytest.mark.parametrize(('schedule', 'exponent', 'mean'), [('cosine', 1, 0.6366), ('power', 2, 0.6667)])
def test_as_many_are_hidden_as_the_schedule_says(schedule, exponent, mean):
    keys = jax.random.split(jax.random.key(0), 4000)
    hidden = np.asarray(masked.hiding(schedule, exponent, keys, 64))
    counts = hidden.sum(1)
    assert counts.min() >= 1 and counts.max() <= 64
    assert abs(counts.mean() / 64 - mean) < 0.02
    np.testing.assert_allclose(hidden.mean(0), counts.mean() / 64, atol=0.04)
    # One image's are its own.
    np.testing.assert_array_equal(masked.hiding(schedule, exponent, keys[7:8], 64)[0], hidden[7])


def test_a_small_network_learns_the_codes_of_two_pictures(tokenizer, known):
    network = maskgit.build(
        tokenizer.scales, CODES, 1, 3, depth=2, hidden=32, heads=2, multiple=16, dropout=0.05
    )
    objective = masked.build({'model': Network(network)}, labels.build(3), tokenizer, drop=0.0)
    cond = {'label': jnp.array([0, 2]), 'drop': jnp.zeros(2, bool)}
    params = {'model': network.init(jax.random.key(1), *network.blank(None, None, cond))['params']}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def learn(params):
        def step(carry, key):
            params, moments = carry

            def loss(params):
                keys = jax.random.split(key, 2)
                total, weight, _, metrics = objective.phases[0].loss(
                    params, {}, {'networks': known}, batch(), keys, jnp.int32(0)
                )
                return total / weight, metrics['accuracy']

            (value, accuracy), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            updates, moments = optimizer.update(gradients, moments, params)
            return (optax.apply_updates(params, updates), moments), (value, accuracy[0] / accuracy[1])

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(2), 80))[
            1
        ]

    values, accuracies = learn(params)
    assert abs(values[0] - np.log(CODES)) < 0.3
    assert values[-5:].mean() < 0.5 and accuracies[-5:].mean() > 0.85
