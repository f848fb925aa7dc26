"""Attention against its definition, every implementation alike; masks, compression, rotary positions."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.seeded import normal, relative_error

from jaxgen.layers import attention as layer
from jaxgen.layers.attention import CrossAttention, SelfAttention, attention
from jaxgen.layers.compress import Compress
from jaxgen.layers.rope import rope_1d, rope_2d, rotate

Q, K, V = normal('q', (2, 5, 3, 8)), normal('k', (2, 7, 3, 8)), normal('v', (2, 7, 3, 8))
MASK = np.arange(7)[None] < np.array([[7], [3]])
IMPLEMENTATIONS = ['einsum', 'float32', 'xla']


def by_definition(q, k, v, allowed):
    """One query of one head of one image at a time, in float64."""
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(q.shape[:3]):
        keys = allowed[b, i]
        scores = k[b, keys, h].astype(np.float64) @ q[b, i, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, i, h] = weights @ v[b, keys, h] / weights.sum()
    return out


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('kind', ['none', 'keys', 'pairs', 'causal', 'causal and keys'])
def test_equals_the_definition(implementation, kind):
    pairs = np.random.RandomState(0).rand(2, 5, 7) < 0.5
    pairs[:, :, 0] = True
    triangle = np.tril(np.ones((5, 7), bool), 2)[None]
    mask, causal, allowed = {
        'none': (None, False, np.ones((2, 5, 7), bool)),
        'keys': (MASK, False, np.broadcast_to(MASK[:, None], (2, 5, 7))),
        'pairs': (pairs, False, pairs),
        'causal': (None, True, np.broadcast_to(triangle, (2, 5, 7))),
        'causal and keys': (MASK, True, triangle & MASK[:, None]),
    }[kind]
    out = attention(Q, K, V, mask, causal=causal, implementation=implementation)
    assert relative_error(out, by_definition(Q, K, V, allowed)) < 2e-6


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_a_fully_masked_row_is_finite_with_its_gradient(implementation):
    mask = np.array([[True] * 7, [False] * 7])

    def loss(q, k, v):
        return jnp.sum(attention(q, k, v, mask, implementation=implementation) ** 2)

    value, gradients = jax.value_and_grad(loss, (0, 1, 2))(Q, K, V)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


def test_scores_stay_in_bfloat16_and_their_statistics_are_float32():
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in (Q, K, V))
    program = str(jax.make_jaxpr(lambda *a: attention(*a, implementation='einsum'))(q, k, v))
    assert re.search(r'bf16\[2,3,5,7\] = dot_general', program)
    assert re.search(r'f32\[2,3,5,7\] = exp', program) and re.search(r'f32\[2,3,5\] = reduce_sum', program)
    out = attention(q, k, v, implementation='einsum')
    assert out.dtype == jnp.bfloat16
    assert relative_error(out, attention(q, k, v, implementation='float32')) < 2e-2


@pytest.mark.parametrize('implementation', ['einsum', 'float32'])
@pytest.mark.parametrize('kind', ['none', 'keys', 'pairs', 'causal'])
def test_many_scores_are_computed_in_pieces(implementation, kind, monkeypatch):
    q = normal('long q', (2, 12, 3, 8))
    mask = {'keys': MASK, 'pairs': np.arange(7) <= np.arange(24).reshape(2, 12, 1)}.get(kind)

    def loss(q, k, v):
        out = attention(q, k, v, mask, causal=kind == 'causal', implementation=implementation)
        return jnp.sum(jnp.sin(out)), out

    def evaluated():
        (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, K, V)
        return out, *gradients

    whole = evaluated()
    monkeypatch.setattr(layer, 'SCORES', 3 * 5 * 7)  # five queries, of which 12 are no multiple
    program = str(jax.make_jaxpr(jax.grad(loss, has_aux=True))(q, K, V))
    assert '[2,3,4,7]' in program and '[2,3,12,7]' not in program
    for ours, one in zip(evaluated(), whole):
        assert relative_error(ours, one) < 1e-6


def test_unknown_implementation_and_mask_are_refused():
    with pytest.raises(ValueError, match='ring'):
        attention(Q, K, V, implementation='ring')
    with pytest.raises(ValueError, match='causal'):
        attention(Q, K, V, causal=True, implementation='flash')
    with pytest.raises(ValueError, match=r'\(7,\)'):
        attention(Q, K, V, MASK[0])
    with pytest.raises(ValueError, match='3 heads'):
        SelfAttention(3).init(jax.random.key(0), normal('x', (1, 4, 8)))


def test_cross_attention_ignores_padding():
    module, x, text = CrossAttention(2), normal('x', (2, 4, 8)), normal('text', (2, 7, 8))
    variables = module.init(jax.random.key(0), x, text, MASK)
    out = module.apply(variables, x, text, MASK)
    np.testing.assert_array_equal(
        module.apply(variables, x, np.where(MASK[..., None], text, 99.0), MASK), out
    )
    np.testing.assert_allclose(out[1:], module.apply(variables, x[1:], text[1:, :3]), atol=1e-6)


@pytest.mark.parametrize('sampling', ['conv', 'ave', 'uniform'])
def test_compression(sampling):
    x = normal('x', (2, 5 * 7, 6))
    module = Compress(2, sampling)
    variables = module.init(jax.random.key(0), (x, x), (5, 7))
    (first, second) = module.apply(variables, (x, 2 * x), (5, 7))
    image = x.reshape(2, 5, 7, 6)[:, :4, :6]  # what fills no square is left out
    mean = image.reshape(2, 2, 2, 3, 2, 6).mean((2, 4)).reshape(2, 6, 6)
    normed = (mean - mean.mean(-1, keepdims=True)) / np.sqrt(mean.var(-1, keepdims=True) + 1e-5)
    expected = {'conv': normed, 'ave': mean, 'uniform': image[:, ::2, ::2].reshape(2, 6, 6)}[sampling]
    np.testing.assert_allclose(first, expected, atol=1e-5)
    assert bool(variables) == (sampling == 'conv') and second.shape == first.shape


def test_compressed_attention_needs_its_grid():
    x = normal('x', (2, 16, 8))
    with pytest.raises(ValueError, match='grid'):
        SelfAttention(2, compress=2).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match='too small'):
        SelfAttention(2, compress=4).init(jax.random.key(0), x, grid=(2, 8))
    with pytest.raises(ValueError, match='median'):
        SelfAttention(2, compress=2, sampling='median').init(jax.random.key(0), x, grid=(4, 4))


def test_rotary_scores_depend_on_distance_alone():
    q, k = normal('q', (1, 1, 1, 16)), normal('k', (1, 1, 1, 16))
    at = {p: rope_1d(np.array([p]), 16) for p in (0, 3, 40, 43)}

    def score(i, j):
        return float(jnp.sum(rotate(q, at[i]) * rotate(k, at[j])))

    assert abs(score(0, 3) - score(40, 43)) < 1e-4 < abs(score(0, 3) - score(3, 0))
    np.testing.assert_allclose(rotate(q, at[0]), q)
    np.testing.assert_allclose(jnp.linalg.norm(rotate(q, at[40])), np.linalg.norm(q), rtol=1e-5)


def test_axial_rotary_positions():
    angles = rope_2d((3, 4), 16)
    assert angles.shape == (12, 8)
    np.testing.assert_array_equal(angles[4 * 2 + 1, :4], rope_1d(np.array([2]), 8)[0])
    np.testing.assert_array_equal(angles[4 * 2 + 1, 4:], rope_1d(np.array([1]), 8)[0])
    x = normal('x', (2, 12, 32))
    module = SelfAttention(2)
    variables = module.init(jax.random.key(0), x)
    turned = module.apply(variables, x, rope=angles)
    assert np.abs(turned - module.apply(variables, x)).max() > 1e-3
    with pytest.raises(ValueError, match='4'):
        rope_2d((3, 4), 6)
