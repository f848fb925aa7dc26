"""Codes as an alphabet: there and back, their likelihood, and how they are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden.seeded import normal

from jaxgen.autoregressive import alphabet
from jaxgen.tokenizers import vqgan
from jaxgen.tokenizers.bottlenecks import residual

CODES = 16


@pytest.fixture(scope='module')
def tokenizer():
    return vqgan.build(
        8, residual.build(CODES, 4, (1, 2, 4)), widths=(8, 16), blocks=1, groups=4, attention=()
    )


def test_tokens_of_all_scales_are_one_sequence(tokenizer):
    params, letters = tokenizer.init(jax.random.key(0)), alphabet.of(tokenizer)
    latents = normal('latents', (2, 4, 4, 4))
    tokens = letters.tokens(params, latents)
    by_scale = tokenizer.quantize(params, latents)
    np.testing.assert_array_equal(tokens, np.concatenate(by_scale, axis=1))
    assert letters.empty(2).shape == tokens.shape == (2, 21) and letters.empty(2).dtype == tokens.dtype
    np.testing.assert_array_equal(letters.latents(params, tokens), tokenizer.embed(params, by_scale))
    assert letters.scales == tokenizer.scales


def knobs(**changes):
    return {'guidance': 1.0, 'temperature': 1.0, 'top_k': 0, 'top_p': 0.0} | changes


def test_codes_are_drawn_by_guided_logits_and_their_likelihood_is_that_before_cuts(tokenizer):
    letters, both = alphabet.of(tokenizer), jnp.asarray(normal('both', (4, 3, CODES)))
    keys = jax.random.split(jax.random.key(0), 2)
    settings = {name: jnp.asarray(value) for name, value in knobs(guidance=3.0, top_k=1).items()}
    tokens, likelihood = letters.drawn(both, keys, settings)
    guided = both[2:] + 3 * (both[:2] - both[2:])
    np.testing.assert_array_equal(tokens, guided.argmax(-1))
    expected = -optax.softmax_cross_entropy_with_integer_labels(guided, tokens)
    np.testing.assert_allclose(likelihood, expected, rtol=1e-5)
    np.testing.assert_allclose(letters.loss(guided, tokens), -expected, rtol=1e-5)
    cold = {name: jnp.asarray(value) for name, value in knobs(temperature=1e-3, guidance=3.0).items()}
    np.testing.assert_array_equal(letters.drawn(both, keys, cold)[0], tokens)
