"""M-VAR against the authors' code with the same random weights, live and stored; what sees what; memory."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import make_mvar as cases
from golden.seeded import disagreements, relative_error, stored
from golden.var_cases import DROP, LABELS

from jaxgen.models import mvar, var
from jaxgen.weights import mvar as names
from jaxgen.weights import published
from jaxgen.weights.names import entries, to_jaxgen, to_published

TOLERANCE = 1e-4
CONDITION = {'label': LABELS, 'drop': DROP}
FULL = pytest.param(cases.FULL, marks=pytest.mark.slow, id='full width')


@pytest.mark.parametrize('case', list(cases.CASES))
def test_golden(case):
    every, prefix = stored('mvar'), f'{case}/'
    reference = {name.removeprefix(prefix): every[name] for name in every.files if name.startswith(prefix)}
    network = mvar.build(**cases.CASES[case])
    ours = cases.run(network, cases.parameters(network), cases.CASES[case])
    assert len(reference) >= 30 and set(reference) <= set(ours)
    assert not disagreements(ours, reference, TOLERANCE)


@pytest.mark.parity
@pytest.mark.parametrize(
    'settings', [*(pytest.param(settings, id=case) for case, settings in cases.CASES.items()), FULL]
)
def test_logits_and_gradients_equal_authors(settings):
    pytest.importorskip('torch')
    if not os.environ.get('JAXGEN_MVAR'):
        pytest.skip("JAXGEN_MVAR names no checkout of the authors' code")
    network = mvar.build(**settings)
    params, table = cases.parameters(network), names.authors(network)
    model = cases.authors(os.environ['JAXGEN_MVAR'], settings, to_published(table, params))
    published = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(table, published, params), params)
    reference = cases.run_authors(model, settings)
    assert not disagreements(cases.run(network, params, settings), reference, TOLERANCE)


TINY = {'scales': var.squares((1, 2, 3, 4)), 'codes': 16, 'channels': 4, 'classes': 5}
TINY |= {'depth': 2, 'hidden': 16, 'heads': 2, 'head_width': 8, 'state': 4}


def tiny(**changes):
    settings = TINY | changes
    network = mvar.build(**settings)
    return network, cases.parameters(network), cases.told(settings)


def test_no_logit_sees_a_later_scale_and_each_sees_every_one_before():
    network, params, x = tiny()
    ends = var.offsets(network.scales)

    @jax.jit
    def logits(x):
        return network.apply({'params': params}, x, None, CONDITION)[0]

    whole = logits(x)
    for scale in range(1, len(network.scales)):
        for token in (ends[scale], ends[scale + 1] - 1):
            moved = np.abs(whole - logits(jnp.asarray(x).at[:, token - 1].add(1.0)))
            assert moved[:, : ends[scale]].max() == 0
            assert moved[:, ends[scale] :].max(-1).min() > 1e-6


@pytest.mark.parametrize(
    'changes', [{}, pytest.param({'unit_norm': False, 'scan': False}, marks=pytest.mark.slow)], ids=str
)
def test_the_memory_changes_no_logit(changes):
    network, params, x = tiny(**changes)
    ends = var.offsets(network.scales)

    @jax.jit
    def whole(x):
        memory = network.cache(len(x))
        return network.apply({'params': params}, x, None, CONDITION, memory=memory)[::2]

    @jax.jit
    def by_scales(x):
        memory, parts = network.cache(len(x)), []
        for scale in range(len(network.scales)):
            told = None if scale == 0 else x[:, ends[scale] - 1 : ends[scale + 1] - 1]
            logits, _, memory = network.apply({'params': params}, told, scale, CONDITION, memory=memory)
            parts.append(logits)
        return jnp.concatenate(parts, 1), memory

    (expected, last), (logits, memory) = whole(x), by_scales(x)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), memory, last)


def test_a_scale_costs_the_same_whatever_was_before():
    def operations(sides):
        network, params, _ = tiny(scales=var.squares(sides))
        told, last = jnp.zeros((3, sides[-1] ** 2, 4)), len(sides) - 1

        def drawn(params, told, memory):
            return network.apply({'params': params}, told, last, CONDITION, memory=memory)[::2]

        memory = network.cache(3)
        shapes = jax.tree.map(lambda leaf: leaf.shape, memory)
        cost = jax.jit(drawn).lower(params, told, memory).compile().cost_analysis()['flops']
        return cost, shapes

    (few, memory), (many, same) = operations((1, 8)), operations((1, 2, 4, 6, 7, 8))
    assert memory == same and many == pytest.approx(few, rel=1e-3)


def test_parts_are_left_out_as_often_as_asked():
    network, params, x = tiny(drop_path=0.5)
    branches = network.drops(jax.random.split(jax.random.key(0), 2000))['branches']
    assert branches.shape == (2, 2000, 3) and (branches[0] == 1).all()
    assert abs((branches[1] == 0).mean() - 0.5) < 0.02

    @jax.jit
    def deltas(branches):
        given = {'per_layer': {'branches': branches}, 'capture': ('*.delta',)}
        return network.apply({'params': params}, x, None, CONDITION, **given)[1]['*.delta']

    assert (deltas(jnp.zeros((2, 3, 3))) == 0).all()
    assert all(np.abs(deltas(jnp.zeros((2, 3, 3)).at[..., part].set(1))).max() > 0 for part in range(3))


def test_bfloat16_stays_near_float32():
    network, params, x = tiny()
    half = mvar.build(**TINY, dtype='bfloat16', remat='named')
    expected, logits = (
        jax.jit(lambda x, net=net: net.apply({'params': params}, x, None, CONDITION)[0])(x)
        for net in (network, half)
    )
    assert logits.dtype == jnp.float32 and relative_error(logits, expected) < 0.05


def test_published_names_and_sizes():
    network = mvar.build(depth=12)
    params = jax.eval_shape(network.init, jax.random.key(0), *names.inputs(network))['params']
    # The authors' own class counted in torch, with a Mamba2 of these shapes.
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 198_435_568
    shapes = {entry.name: entry.shape for entry in entries(names.authors(network), params)}
    mamba = {name: shape for name, shape in shapes.items() if name.startswith('blocks.11.mamba.')}
    assert {name.removeprefix('blocks.11.mamba.'): shape for name, shape in mamba.items()} == {
        'in_proj.weight': (3224, 768),
        'conv1d.weight': (1664, 1, 4),
        'conv1d.bias': (1664,),
        'dt_bias': (24,),
        'A_log': (24,),
        'D': (24,),
        'norm.weight': (1536,),
        'out_proj.weight': (768, 1536),
    }
    assert shapes['blocks.11.ada_lin.1.weight'] == (9 * 768, 768)


def test_a_file_is_read_without_what_is_computed(tmp_path):
    torch = pytest.importorskip('torch')
    network, params, _ = tiny()
    arrays = to_published(names.authors(network), params)
    arrays |= {'blocks.0.attn.patch_nums': np.zeros(4), 'lvl_1L': np.zeros((1, 30))}
    torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, tmp_path / 'd.pth')
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    loaded = published.load(network, str(tmp_path / 'd.pth'), like)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match='head_width is 64, which does not divide 2 x 48'):
        mvar.build(hidden=48)
