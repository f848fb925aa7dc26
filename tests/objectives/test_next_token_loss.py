"""The loss over tokens: by hand, by scale, with labels smoothed, without chance held out; what is refused."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden.seeded import normal

from jaxgen.conditioning import labels
from jaxgen.objectives import next_token
from jaxgen.tokenizers import vqgan
from jaxgen.tokenizers.bottlenecks import residual

SCALES, CODES, TOKENS = (1, 2, 4), 16, 21


@pytest.fixture(scope='module')
def tokenizer():
    return vqgan.build(8, residual.build(CODES, 4, SCALES), widths=(8, 16), blocks=1, groups=4, attention=())


@pytest.fixture(scope='module')
def known(tokenizer):
    return tokenizer.init(jax.random.key(0))


def run(tokenizer, known, method='loss', causal=True, **settings):
    """(total, metrics, what the network saw, its logits, codes) of two pictures."""
    seen, logits = {}, jnp.asarray(normal('logits', (2, TOKENS, CODES)))

    def network(params, x, t, cond, per_layer=None, train=False):
        seen.update(x=x, t=t, cond=cond, per_layer=per_layer, train=train)
        return logits + params['bias'], {}, None

    network.module = types.SimpleNamespace(drops=lambda keys: {'keys': len(keys)}, causal=causal)
    objective = next_token.build({'model': network}, labels.build(3), tokenizer, **settings)
    loss = objective.phases[0].loss if method == 'loss' else objective.held_out
    batch = {'image': np.uint8(40 * normal('picture', (2, 8, 8, 3)) + 127), 'label': jnp.array([0, 2])}
    keys = jax.random.split(jax.random.key(0), 2)
    params = {'model': {'bias': jnp.zeros(CODES)}}
    total, weight, _, metrics = loss(params, {}, {'networks': known}, batch, keys, jnp.int32(0))
    assert weight == 2
    codes = tokenizer.quantize(known, tokenizer.encode(known, batch, keys))
    return total / 2, metrics, seen, logits, jnp.concatenate(codes, axis=1)


def test_it_is_the_mean_over_all_tokens_and_is_told_by_scale(tokenizer, known):
    total, metrics, seen, logits, codes = run(tokenizer, known)
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
    np.testing.assert_allclose(total, errors.mean(), rtol=1e-6)
    for name, part in zip(('1x1', '2x2', '4x4'), np.split(errors, (1, 5), axis=1), strict=True):
        value, weight = metrics[f'error_{name}']
        np.testing.assert_allclose(value / weight, part.mean(), rtol=1e-6)
    np.testing.assert_array_equal(seen['x'], codes)
    assert seen['t'] is None and seen['train'] and seen['per_layer'] == {'keys': 2}


def test_smoothing_shares_the_target(tokenizer, known):
    total, _, _, logits, codes = run(tokenizer, known, smoothing=0.3)
    target = 0.7 * jax.nn.one_hot(codes, CODES) + 0.3 / CODES
    np.testing.assert_allclose(total, optax.softmax_cross_entropy(logits, target).mean(), rtol=1e-5)


def test_conditions_are_left_out_in_training_alone(tokenizer, known):
    assert run(tokenizer, known, drop=0.999)[2]['cond']['drop'].all()
    total, _, seen, logits, codes = run(tokenizer, known, 'held_out', drop=0.999, smoothing=0.3)
    assert not seen['cond']['drop'].any() and not seen['train'] and seen['per_layer'] is None
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
    np.testing.assert_allclose(total, errors.mean(), rtol=1e-6)


def test_a_network_that_sees_what_follows_is_refused(tokenizer, known):
    with pytest.raises(ValueError, match="'next_token' is of networks that see the tokens before one alone"):
        run(tokenizer, known, causal=False)
