"""Optimizers by name: schedules, masks, options and Muon on stacked kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.training import optimizer


def network(key=0):
    keys = jax.random.split(jax.random.key(key), 4)
    return {
        'patch': {'kernel': jax.random.normal(keys[0], (4, 8)), 'bias': jnp.ones(8)},
        'stack': {
            '0': {
                'mlp': {'kernel': jax.random.normal(keys[1], (3, 8, 16)), 'bias': jnp.ones((3, 16))},
                'scale_shift_table': jax.random.normal(keys[2], (3, 6, 8)),
            }
        },
        'final': {'kernel': jax.random.normal(keys[3], (8, 4))},
    }


def one_update(transformation, params, grads):
    @jax.jit
    def update(params, grads):
        return transformation.update(grads, transformation.init(params), params)[0]

    return update(params, grads)


def tree_close(left, right, tolerance=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=1e-9), left, right)


def test_schedules_pass_through_their_points():
    def at(rate, *steps):
        return [float(rate(step)) for step in steps]

    constant = optimizer.make_schedule('constant', 2.0, warmup=4)
    np.testing.assert_allclose(at(constant, 0, 1, 3, 100), [0.5, 1.0, 2.0, 2.0], rtol=1e-6)
    cosine = optimizer.make_schedule('cosine', 2.0, warmup=10, steps=30, final=0.1)
    np.testing.assert_allclose(at(cosine, 10, 20, 30, 99), [2.0, 1.1, 0.2, 0.2], rtol=1e-6)
    linear = optimizer.make_schedule('linear', 2.0, steps=10)
    np.testing.assert_allclose(at(linear, 0, 5, 10), [2.0, 1.0, 0.0], atol=1e-6)
    rsqrt = optimizer.make_schedule('rsqrt', 2.0, warmup=16)
    np.testing.assert_allclose(at(rsqrt, 15, 63), [2.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ({'name': 'adamww'}, "nearest is 'adamw'"),
        ({'name': 'lbfgs'}, "'lbfgs' is not one of"),
        ({'schedule': 'cosin'}, "'cosine'"),
        ({'schedule': 'cosine'}, 'steps=None'),
        ({'schedule': 'rsqrt'}, 'warmup'),
        ({'options': {'beta1': 0.9}}, "nearest is 'b1'"),
        ({'options': {'mask': None}}, "own key 'no_decay'"),
    ],
)
def test_mistakes_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        optimizer.build(**arguments)


def test_adamw_equals_optax_with_clip_mask_and_options():
    params, grads = network(0), network(1)
    ours, _ = optimizer.build('adamw', 1e-2, weight_decay=0.1, clip=0.5, options={'b2': 0.95})
    mask = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)
    theirs = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(1e-2, b2=0.95, weight_decay=0.1, mask=mask)
    )
    tree_close(one_update(ours, params, grads), one_update(theirs, params, grads))


@pytest.mark.parametrize('name', ['sgd', 'adafactor', 'muon', 'adamw'])
def test_weight_decay_is_decoupled_and_leaves_biases_alone(name):
    params, grads = network(0), network(1)
    without, rate = optimizer.build(name, 0.01, warmup=4)
    decayed, _ = optimizer.build(name, 0.01, warmup=4, weight_decay=0.5)
    difference = jax.tree.map(
        jnp.subtract, one_update(decayed, params, grads), one_update(without, params, grads)
    )
    step = -float(rate(0)) * 0.5
    np.testing.assert_allclose(difference['patch']['kernel'], step * params['patch']['kernel'], atol=2e-6)
    np.testing.assert_allclose(
        difference['stack']['0']['mlp']['kernel'], step * params['stack']['0']['mlp']['kernel'], atol=2e-6
    )
    assert not np.any(difference['patch']['bias'])
    assert not np.any(difference['stack']['0']['scale_shift_table'])


def test_muon_makes_each_layer_orthogonal_and_leaves_the_rest_to_adam():
    params, grads = network(0), network(1)
    muon, _ = optimizer.build('muon', 1.0, clip=0.0)
    update = one_update(muon, params, grads)
    kernel = update['stack']['0']['mlp']['kernel']
    singular = np.linalg.svd(kernel, compute_uv=False) / np.sqrt(2)
    assert singular.shape == (3, 8) and singular.min() > 0.4 and singular.max() < 1.4
    # The layers are a batch: the first alone gives the same.
    alone = optax.contrib.muon(1.0).update
    single = {'kernel': params['stack']['0']['mlp']['kernel'][1]}
    state = optax.contrib.muon(1.0).init(single)
    expected = alone({'kernel': grads['stack']['0']['mlp']['kernel'][1]}, state, single)[0]['kernel']
    np.testing.assert_allclose(kernel[1], expected, atol=1e-5)
    adam = optax.nadam(1.0)
    expected = one_update(adam, params, grads)
    for outside in ('patch', 'final'):
        tree_close(update[outside], expected[outside], 1e-5)
    tree_close(update['stack']['0']['scale_shift_table'], expected['stack']['0']['scale_shift_table'], 1e-5)
    tree_close(update['stack']['0']['mlp']['bias'], expected['stack']['0']['mlp']['bias'], 1e-5)


def test_muon_takes_a_convolution_as_one_matrix():
    keys = jax.random.split(jax.random.key(0))
    params, grads = ({'decoder': {'kernel': jax.random.normal(key, (3, 3, 4, 8))}} for key in keys)
    muon, _ = optimizer.build('muon', 1.0, clip=0.0, matrices=('decoder/.*kernel',))
    matrices = jax.tree.map(lambda leaf: leaf.reshape(36, 8), (params, grads))
    expected = one_update(optimizer.build('muon', 1.0, clip=0.0, matrices=('decoder',))[0], *matrices)
    update = one_update(muon, params, grads)['decoder']['kernel'].reshape(36, 8)
    np.testing.assert_allclose(update, expected['decoder']['kernel'], rtol=1e-5, atol=1e-6)


def test_muon_without_a_matrix_is_refused():
    muon, _ = optimizer.build('muon')
    with pytest.raises(ValueError, match='muon found no matrix'):
        muon.init({'bias': jnp.ones(3)})


@pytest.mark.slow
@pytest.mark.parametrize('name', optimizer.names())
def test_every_name_takes_a_step(name):
    params, grads = network(0), network(1)
    transformation, _ = optimizer.build(name, 1e-3, weight_decay=0.01, warmup=2)
    update = one_update(transformation, params, grads)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(update))
