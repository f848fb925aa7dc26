"""Bottlenecks against the definitions in their papers, and how a codebook learns without gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.seeded import normal

from jaxgen.keys import split_examples
from jaxgen.tokenizers.bottlenecks import Quantized, bsq, fsq, ibq, kl, residual, rotated, straight_through
from jaxgen.tokenizers.bottlenecks.codebook import k_means, nearest
from jaxgen.tokenizers.bottlenecks.learning import Learning
from jaxgen.tokenizers.bottlenecks.residual import phi_of
from jaxgen.training import sharding

KEYS = split_examples(jax.random.key(0), jnp.arange(2))


def run(bottleneck, method, *arguments, params=None):
    return bottleneck.apply({'params': params or {}}, *arguments, method=method)


def test_straight_through_and_rotation():
    z, q, slope = (jnp.asarray(normal(name, (5,))) for name in 'zqs')
    value, back = jax.vjp(lambda z: straight_through(z, q), z)
    np.testing.assert_allclose(value, q, atol=1e-6)
    np.testing.assert_allclose(back(slope)[0], slope)
    value, back = jax.vjp(lambda z: rotated(z, q), z)
    np.testing.assert_allclose(value, q, atol=1e-5)
    turned = back(slope)[0]
    length = jnp.linalg.norm(q) / jnp.linalg.norm(z)
    # The Jacobian is that length times a rotation that takes z's direction to q's, and touches nothing that
    # is orthogonal to both.
    jacobian = jax.jacobian(lambda z: rotated(z, q))(z) / length
    np.testing.assert_allclose(jacobian @ jacobian.T, np.eye(5), atol=1e-5)
    assert np.linalg.det(jacobian) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(jacobian @ z / jnp.linalg.norm(z), q / jnp.linalg.norm(q), atol=1e-5)
    across = np.linalg.svd(np.stack([z, q]))[2][2:]
    np.testing.assert_allclose(jacobian @ across.T, across.T, atol=1e-5)
    # So the angle of the gradient with z is the one that it had with q.
    cosine = [float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)) for a, b in ((slope, q), (turned, z))]
    assert cosine[0] == pytest.approx(cosine[1], abs=1e-5)
    assert np.isfinite(jax.grad(lambda z: rotated(z, q).sum())(jnp.zeros(5))).all()


@pytest.mark.parametrize('levels', [(8, 5, 3), (4, 4), (2, 7)])
def test_fsq(levels):
    """Codes and products of levels are one to one; every level is reached; rounding is of the bound value."""
    made = fsq.build(levels)
    codes = jnp.arange(np.prod(levels))
    vectors = run(made, 'lookup', codes)
    np.testing.assert_array_equal(run(made, 'chosen', vectors), codes)
    digits = vectors * (np.asarray(levels) // 2)
    wanted = itertools.product(*(np.arange(n) - n // 2 for n in reversed(levels)))
    np.testing.assert_allclose(digits[:, ::-1], list(wanted), atol=1e-6)
    for channel, count in enumerate(levels):
        z = np.zeros((1001, len(levels)), np.float32)
        z[:, channel] = np.linspace(-8, 8, 1001)
        bounded = run(made, 'begin', z)[:, channel]
        assert (np.diff(bounded) >= -1e-6).all()
        assert len(np.unique(np.round(bounded * (count // 2)))) == count
    # z = 0 is on the middle level of an odd number of them, and on the boundary's right side of an even one.
    np.testing.assert_allclose(run(made, 'begin', jnp.zeros(len(levels))), 0, atol=1e-6)
    z = jnp.asarray(normal('z', (2, 1, 1, len(levels))))
    slope = jax.grad(lambda z: run(made, '__call__', z, ((1, 1),), KEYS).maps[0].sum())(z)
    np.testing.assert_allclose(slope, jax.grad(lambda z: run(made, 'begin', z).sum())(z), rtol=1e-5)


def test_bsq_codes():
    made = bsq.build(6)
    vectors = run(made, 'lookup', jnp.arange(64))
    np.testing.assert_array_equal(run(made, 'chosen', vectors), np.arange(64))
    assert len(np.unique(vectors, axis=0)) == 64
    np.testing.assert_allclose(np.abs(vectors), 6**-0.5, rtol=1e-6)
    z = normal('z', (2, 3, 3, 6))
    found = run(made, '__call__', z, ((3, 3),), KEYS)
    np.testing.assert_allclose(found.maps[0], np.sign(z) / np.sqrt(6), atol=1e-6)
    with pytest.raises(ValueError, match='must divide'):
        bsq.build(18, groups=4)
    with pytest.raises(ValueError, match='at most 16'):
        bsq.build(18, groups=1)


def entropy(p, axis=-1):
    return -(p * np.log(np.maximum(p, 1e-300))).sum(axis)


@pytest.mark.parametrize('groups', [1, 3])
def test_bsq_entropies(groups):
    """Against the softmax over all corners, written out; by groups, against its marginals."""
    sharpness, z = 4.0, normal('z', (50, 6)).astype(np.float64)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    corners = np.array(list(itertools.product((-1, 1), repeat=6))) / np.sqrt(6)
    p = np.exp(sharpness * z @ corners.T)
    p /= p.sum(-1, keepdims=True)
    own, common = bsq.entropies(jnp.asarray(z, jnp.float32), groups, sharpness)
    np.testing.assert_allclose(own, entropy(p), rtol=1e-4)
    joint = p.mean(0).reshape([2] * 6)
    width = 6 // groups
    parts = [range(first, first + width) for first in range(0, 6, width)]
    others = [tuple(set(range(6)) - set(part)) for part in parts]
    marginals = [joint.sum(axes).ravel() if axes else joint.ravel() for axes in others]
    if groups == 1:
        np.testing.assert_allclose(common, entropy(marginals[0]), rtol=1e-4)
    else:
        # Bits of one group are taken together, groups as if they were independent.
        np.testing.assert_allclose(common, sum(map(entropy, marginals)), rtol=1e-4)
        assert common >= entropy(joint.ravel()) - 1e-5


def test_ibq_is_its_definition():
    made = ibq.build(16, 4, entropy=0.0)
    z, weight = jnp.asarray(normal('z', (2, 2, 2, 4))), normal('w', (2, 2, 2, 4))
    params = {'codebook': {'table': jnp.asarray(normal('table', (16, 4)))}}

    def ours(params, z):
        found = run(made, '__call__', z, ((2, 2),), KEYS, params=params)
        return (found.maps[0] * weight).sum(), found.codes[0]

    def theirs(params, z):
        table = params['codebook']['table']
        soft = jax.nn.softmax(z @ table.T)
        hard = jax.nn.one_hot(soft.argmax(-1), 16)
        index = hard - jax.lax.stop_gradient(soft) + soft
        return ((index @ table) * weight).sum(), (z @ table.T).argmax(-1).reshape(2, 4)

    (value, codes), slopes = jax.value_and_grad(ours, (0, 1), has_aux=True)(params, z)
    (expected, wanted), expected_slopes = jax.value_and_grad(theirs, (0, 1), has_aux=True)(params, z)
    np.testing.assert_array_equal(codes, wanted)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), slopes, expected_slopes)
    assert (jnp.abs(slopes[0]['codebook']['table']).sum(-1) > 0).all()  # unlike in vector quantization
    own, common = ibq.entropies(jnp.asarray(normal('scores', (7, 16))), 0.5)
    p = np.asarray(jax.nn.softmax(normal('scores', (7, 16)) / 0.5), np.float64)
    np.testing.assert_allclose(own, entropy(p), rtol=1e-4)
    np.testing.assert_allclose(common, entropy(p.mean(0)), rtol=1e-4)


@pytest.mark.parametrize(
    ('codes', 'channels'), [(4096, 8), pytest.param(2**18, 256, marks=pytest.mark.slow, id='as published')]
)
def test_ibq_splits_its_codebook_over_a_mesh(codes, channels):
    """As on one device, and nowhere is the whole codebook."""
    made = ibq.build(codes, channels)
    mesh = sharding.make_mesh({'data': 2, 'tensor': 4})
    z, keys = jnp.asarray(normal('z', (4, 2, 2, channels))), split_examples(jax.random.key(0), jnp.arange(4))
    params = {'codebook': {'table': jnp.asarray(normal('table', (codes, channels)))}}

    def cost(params, z):
        found = run(made, '__call__', z, ((2, 2),), keys, params=params)
        return found.loss.mean() + (found.maps[0] ** 2).mean(), found.codes[0]

    step = jax.jit(jax.value_and_grad(cost, (0, 1), has_aux=True))
    (expected, wanted), expected_slopes = step(params, z)
    rules = (('codebook/table$', ('tensor', None)),)
    placed = jax.device_put(params, sharding.place(params, rules, mesh))
    split = jax.device_put(z, sharding.batch_sharding(mesh))
    assert placed['codebook']['table'].addressable_shards[0].data.shape == (codes // 4, channels)
    with jax.set_mesh(mesh):
        (value, chosen), slopes = step(placed, split)
        program = step.lower(placed, split).compile().as_text()
    np.testing.assert_array_equal(chosen, wanted)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), slopes, expected_slopes)
    assert f'f32[{codes // 4},{channels}]' in program and f'f32[{codes},{channels}]' not in program


def test_kl_is_the_divergence_of_gaussians():
    made = kl.build(3, weight=0.5)
    z = jnp.asarray(normal('z', (2, 2, 2, 6)))
    found = run(made, '__call__', z, ((2, 2),), KEYS)
    mean, log_variance = np.split(np.asarray(z, np.float64), 2, -1)
    expected = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).mean((1, 2, 3))
    np.testing.assert_allclose(found.metrics['divergence'], expected, rtol=1e-5)
    np.testing.assert_allclose(found.loss, 0.5 * expected, rtol=1e-5)
    noise = (found.maps[0] - mean) / np.exp(0.5 * log_variance)
    again = [jax.random.normal(key, (2, 2, 3)) for key in KEYS]
    np.testing.assert_allclose(noise, again, atol=1e-5)


def test_phis_are_shared_by_neighbours():
    assert [phi_of(k, 10, 4) for k in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert [phi_of(k, 4, 4) for k in range(4)] == [0, 1, 2, 3]
    assert [phi_of(k, 10, 1) for k in range(10)] == [0] * 10
    with pytest.raises(ValueError, match='scales is empty'):
        residual.build(16, 4, ())


def test_distances():
    z, table = normal('z', (40, 3)), normal('table', (8, 3))
    by_length = ((z[:, None] - table) ** 2).sum(-1).argmin(-1)
    cosines = z @ table.T / np.linalg.norm(z, axis=-1)[:, None] / np.linalg.norm(table, axis=-1)
    np.testing.assert_array_equal(nearest(z, table, 'euclidean'), by_length)
    np.testing.assert_array_equal(nearest(z, table, 'cosine'), cosines.argmax(-1))
    np.testing.assert_array_equal(nearest(z, table, 'sphere'), cosines.argmax(-1))
    assert (by_length != cosines.argmax(-1)).any()


def test_k_means_finds_clusters():
    centres = 10 * normal('centres', (4, 3))
    vectors = (centres[:, None] + 0.1 * normal('vectors', (4, 50, 3))).reshape(-1, 3)
    # Of random rows some lie in one cluster: more centres than clusters are asked for.
    found = k_means(vectors, 16, 'euclidean', jax.random.key(0))
    assert all(np.linalg.norm(found - centre, axis=-1).min() < 0.2 for centre in centres)


def batch(table, seed):
    """A step's vectors and the codes that they choose."""
    vectors = jnp.asarray(normal('vectors', (30, 3), seed))
    return Quantized((), (), jnp.zeros(1), {}, vectors, nearest(vectors, table, 'euclidean'))


def test_running_averages():
    learning, table = Learning('averages', decay=0.8), jnp.asarray(normal('table', (8, 3)))
    state, counts, sums = learning.init(8, 3), np.ones(8), np.asarray(table, np.float64)
    for seed in range(3):
        found = batch(table, seed)
        one_hot = np.eye(8)[found.chosen]
        counts, sums = 0.8 * counts + 0.2 * one_hot.sum(0), 0.8 * sums + 0.2 * one_hot.T @ found.vectors
        state = learning.step(state, table, found, found.vectors, 'euclidean', jax.random.key(seed))
        table = learning.settled(table, state)
        np.testing.assert_allclose(table, sums / counts[:, None], rtol=1e-4)


def test_unused_codes_begin_anew_and_others_stay():
    learning = Learning(restart=2, window=2)
    table = jnp.concatenate([jnp.asarray(normal('table', (6, 3))), jnp.full((2, 3), 100.0)])
    state, before = learning.init(8, 3), table
    for seed in range(2):
        found = batch(table, seed)
        state = learning.step(state, table, found, found.vectors, 'euclidean', jax.random.key(seed))
        table = learning.settled(table, state)
    np.testing.assert_array_equal(table[:6], before[:6])
    assert all((found.vectors == code).all(-1).any() for code in table[6:])
    assert learning.in_use(state) == 6 / 8  # a code that begins anew is not in use before it is chosen
    found = batch(table, 2)
    state = learning.step(state, table, found, found.vectors, 'euclidean', jax.random.key(3))
    assert not state['written'].any()


def test_a_codebook_begins_with_k_means_and_not_before():
    learning = Learning(start=2, k_means=True)
    table, state = jnp.full((4, 3), 7.0), learning.init(4, 3)
    for seed in range(3):
        assert learning.quantizes(state) == (seed == 2)
        found = batch(table, seed)
        samples = 5 + found.vectors
        state = learning.step(state, table, found, samples, 'euclidean', jax.random.key(seed))
        settled = learning.settled(table, state)
        if seed == 1:
            assert nearest(samples, settled, 'euclidean').max() == 3
            np.testing.assert_allclose(settled.mean(), 5, atol=1)
        else:
            np.testing.assert_array_equal(settled, table)
