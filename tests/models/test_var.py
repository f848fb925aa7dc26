"""VAR against the authors' code with the same random weights, live and stored; its mask, cache and sizes."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import var_cases
from golden.seeded import disagreements, relative_error, stored

from jaxgen.models import var
from jaxgen.weights import var as names
from jaxgen.weights.names import to_jaxgen, to_published

TOLERANCE = 1e-4
FULL = pytest.param(var_cases.FULL, marks=pytest.mark.slow, id='full width')


def _ours(settings):
    network = var.build(**settings)
    params = var_cases.parameters(network)
    return network, params, var_cases.run(network, params, settings)


@pytest.mark.parametrize('case', list(var_cases.CASES))
def test_golden(case):
    every, prefix = stored('var'), f'{case}/'
    reference = {name.removeprefix(prefix): every[name] for name in every.files if name.startswith(prefix)}
    ours = _ours(var_cases.CASES[case])[2]
    assert len(reference) >= 20 and set(reference) <= set(ours)
    assert not disagreements(ours, reference, TOLERANCE)


@pytest.mark.parity
@pytest.mark.parametrize(
    'settings',
    [*(pytest.param(settings, id=case) for case, settings in var_cases.CASES.items()), FULL],
)
def test_logits_and_gradients_equal_authors(settings):
    pytest.importorskip('torch')
    if not os.environ.get('JAXGEN_VAR'):
        pytest.skip("JAXGEN_VAR names no checkout of the authors' code")
    network, params, ours = _ours(settings)
    table = names.authors(network.shared)
    model = var_cases.authors(os.environ['JAXGEN_VAR'], settings, to_published(table, params))
    published = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(table, published, params), params)
    reference = var_cases.run_authors(model, settings)
    assert not disagreements(ours, reference, TOLERANCE)


def _tiny(**changes):
    settings = var_cases.TINY | changes
    network = var.build(**settings)
    condition = {'label': var_cases.LABELS, 'drop': var_cases.DROP}
    return network, var_cases.parameters(network), var_cases.told(settings), condition


def test_no_logit_sees_a_later_scale_and_each_sees_every_one_before():
    network, params, x, condition = _tiny()
    ends = var.offsets(network.scales)

    @jax.jit
    def logits(x):
        return network.apply({'params': params}, x, None, condition)[0]

    whole = logits(x)
    for scale in range(1, len(network.scales)):
        for token in (ends[scale], ends[scale + 1] - 1):
            moved = np.abs(logits(x.copy()) - logits(jnp.asarray(x).at[:, token - 1].add(1.0)))
            assert moved[:, : ends[scale]].max() == 0
            assert moved[:, ends[scale] :].max(-1).min() > 1e-6
    np.testing.assert_allclose(whole[:, : ends[2]], logits(x[:, : ends[2] - 1]), atol=1e-5)


@pytest.mark.parametrize('changes', [{}, {'shared': True}, {'unit_norm': False}, {'scan': False}], ids=str)
def test_the_cache_changes_no_logit(changes):
    network, params, x, condition = _tiny(**changes)
    ends = var.offsets(network.scales)

    @jax.jit
    def whole(x):
        return network.apply({'params': params}, x, None, condition, capture=('1.out',))[:2]

    @jax.jit
    def by_scales(x):
        memory, parts = network.cache(len(x)), []
        for scale in range(len(network.scales)):
            given = None if scale == 0 else x[:, ends[scale] - 1 : ends[scale + 1] - 1]
            logits, features, memory = network.apply(
                {'params': params}, given, scale, condition, memory=memory, capture=('1.out',)
            )
            parts.append((logits, features['1.out']))
        return jax.tree.map(lambda *each: jnp.concatenate(each, 1), *parts)

    expected, features = whole(x)
    logits, states = by_scales(x)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(states, features['1.out'], atol=1e-5)


def test_layers_are_left_out_as_often_as_asked():
    network, params, x, condition = _tiny(drop_path=0.5)
    keys = jax.random.split(jax.random.key(0), 4000)
    branches = network.drops(keys)['branches']
    assert branches.shape == (3, 4000, 2) and (branches[0] == 1).all()
    for layer, rate in enumerate((0.0, 0.25, 0.5)):
        assert abs((branches[layer] == 0).mean() - rate) < 0.02
        np.testing.assert_allclose(jnp.unique(branches[layer])[-1], 1 / (1 - rate), rtol=1e-6)

    @jax.jit
    def deltas(branches):
        variables = {'params': params}
        return network.apply(
            variables, x, None, condition, per_layer={'branches': branches}, capture=('*.delta',)
        )[1]['*.delta']

    assert (deltas(jnp.zeros((3, 3, 2))) == 0).all()
    assert var.build(**var_cases.TINY, drop_path=0.0).drops(keys) == {}


def test_bfloat16_stays_near_float32():
    network, params, expected = _ours(var_cases.TINY)
    half = var.build(**var_cases.TINY, dtype='bfloat16', remat='named')
    condition = {'label': var_cases.LABELS, 'drop': var_cases.DROP}
    apply = jax.jit(lambda x: half.apply({'params': params}, x, None, condition)[0])
    logits = apply(var_cases.told(var_cases.TINY))
    assert logits.dtype == jnp.float32
    assert relative_error(np.asarray(logits), expected['logits']) < 0.05


@pytest.mark.parametrize(
    ('depth', 'shared', 'sides', 'count'),
    # The authors' own class counted in torch.
    [
        (16, False, var.SIDES_256, 310_283_520),
        (30, False, var.SIDES_256, 2_010_020_356),
        (36, True, var.SIDES_512, 2_353_893_904),
    ],
)
def test_published_parameter_counts(depth, shared, sides, count):
    network = var.build(depth=depth, shared=shared, scales=var.squares(sides))
    params = jax.eval_shape(network.init, jax.random.key(0), *names.inputs(network))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_tokens_of_a_part_of_a_scale_are_refused():
    network, params, x, condition = _tiny()
    with pytest.raises(ValueError, match='7 tokens are no whole number of scales'):
        network.apply({'params': params}, x[:, :6], None, condition)
