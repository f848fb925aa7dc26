"""Embeddings, patches, norms and MLPs against independent formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.seeded import normal
from scipy.special import erf

from jaxgen.layers.embeddings import LabelEmbedding, SizeEmbedding, TimeEmbedding, position_table, sinusoids
from jaxgen.layers.mlp import Mlp, SwiGlu
from jaxgen.layers.modulation import layer_norm, modulate, rms_norm
from jaxgen.layers.patches import PatchEmbed, grid_of, patchify, unpatchify


def test_sinusoids_are_cosines_then_sines():
    t = np.array([0.0, 1.5, 999.0])
    frequencies = 10000.0 ** (-np.arange(4) / 4)
    expected = np.concatenate([np.cos(t[:, None] * frequencies), np.sin(t[:, None] * frequencies)], 1)
    embedded = sinusoids(jnp.asarray(t), 8)
    assert embedded.dtype == jnp.float32
    np.testing.assert_allclose(embedded, expected, atol=1e-4)
    with pytest.raises(ValueError, match='7'):
        sinusoids(jnp.asarray(t), 7)


def test_time_and_size_embeddings_stay_float32():
    size = jnp.array([[512.0, 256.0], [64.0, 32.0]], jnp.bfloat16)
    out, variables = SizeEmbedding(6).init_with_output(jax.random.key(0), size)
    assert out.shape == (2, 12) and out.dtype == jnp.float32
    one = TimeEmbedding(6).apply({'params': variables['params']['mlp']}, size[:, 1])
    np.testing.assert_allclose(out[:, 6:], one, rtol=1e-6)


def test_label_embedding_drops_to_its_last_row_and_shows_wrong_labels():
    module = LabelEmbedding(3, 4)
    table = normal('table', (4, 4))
    out = module.apply(
        {'params': {'table': table}}, jnp.array([0, 2, 1, 7]), jnp.array([False, True, False, False])
    )
    np.testing.assert_array_equal(out[:3], table[[0, 3, 1]])
    assert np.isnan(out[3]).all()


def test_position_table_spans_base_size_on_each_axis():
    def by_hand(column, row, width=8):
        frequencies = 10000.0 ** (-np.arange(width // 4) / (width // 4))
        return np.concatenate([f(p * frequencies) for p in (column, row) for f in (np.sin, np.cos)])

    counted = position_table((3, 5), 8)
    np.testing.assert_allclose(counted[2 * 5 + 4], by_hand(4, 2), atol=1e-6)
    spanned = position_table((3, 5), 8, base_size=15, interpolation=2.0)
    np.testing.assert_allclose(spanned[1 * 5 + 3], by_hand(3 * 3 / 2, 1 * 5 / 2), atol=1e-6)
    with pytest.raises(ValueError, match='6'):
        position_table((2, 2), 6)


def test_patches_round_trip_in_reading_order():
    x = normal('x', (2, 4, 6, 3))
    tokens = patchify(jnp.asarray(x), 2)
    assert tokens.shape == (2, 6, 12)
    np.testing.assert_array_equal(tokens[:, 4], x[:, 2:4, 2:4].reshape(2, 12))
    np.testing.assert_array_equal(unpatchify(tokens, (2, 3), 2), x)
    with pytest.raises(ValueError, match='4x6'):
        grid_of(jnp.asarray(x), 4)
    with pytest.raises(ValueError, match='2x2'):
        unpatchify(tokens, (2, 2), 2)


def test_patch_embedding_is_a_strided_convolution():
    x, kernel = normal('x', (2, 4, 6, 3)), normal('kernel', (12, 5))
    variables = {'params': {'projection': {'kernel': kernel, 'bias': np.zeros(5, np.float32)}}}
    convolved = jax.lax.conv_general_dilated(
        x, kernel.reshape(2, 2, 3, 5), (2, 2), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    out = PatchEmbed(5, 2).apply(variables, x)
    np.testing.assert_allclose(out, convolved.reshape(2, 6, 5), atol=1e-5)


def test_norms_keep_their_digits_on_offset_inputs():
    x = normal('x', (4, 64)) + 300.0
    exact = x.astype(np.float64)
    centred = exact - exact.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    out = layer_norm(affine=False).apply({}, x)
    assert np.abs(out - expected).max() < 1e-4  # the one-pass variance is off by 8e-2 here
    half = layer_norm(affine=False).apply({}, jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.float32
    expected = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-6) * 2
    out = rms_norm().apply({'params': {'scale': 2 * np.ones(64, np.float32)}}, x)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    np.testing.assert_allclose(modulate(x, 1.0, 0.5), x * 1.5 + 1.0)


def test_mlps():
    x = normal('x', (3, 4))
    variables = Mlp(16, 4, 'erf').init(jax.random.key(0), x)
    up, down = variables['params']['up'], variables['params']['down']
    hidden = x @ up['kernel']
    exact = (hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))) @ down['kernel']
    np.testing.assert_allclose(Mlp(16, 4, 'erf').apply(variables, x), exact, atol=1e-5)
    tanh = Mlp(16, 4, 'tanh').apply(variables, x)
    assert 1e-6 < np.abs(tanh - exact).max() < 5e-3
    quick = (hidden / (1 + np.exp(-1.702 * hidden))) @ down['kernel']
    np.testing.assert_allclose(Mlp(16, 4, 'quick').apply(variables, x), quick, atol=1e-5)
    with pytest.raises(ValueError, match='exact'):
        Mlp(16, 4, 'exact').apply(variables, x)
    variables = SwiGlu(16, 4).init(jax.random.key(0), x)
    p = {name: leaf['kernel'] for name, leaf in variables['params'].items()}
    gate = x @ p['gate']
    expected = (gate / (1 + np.exp(-gate)) * (x @ p['up'])) @ p['down']
    np.testing.assert_allclose(SwiGlu(16, 4).apply(variables, x), expected, atol=1e-5)
