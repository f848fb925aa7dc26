"""LightningDiT against the authors' code with the same random weights, live and stored, and its sizes."""

import jax
import jax.numpy as jnp
import pytest
from golden import authors, cases
from golden.seeded import disagreements, relative_error, stored

from jaxgen.models import lightning_dit
from jaxgen.weights import lightning_dit as lightning_dit_names
from jaxgen.weights.names import to_published

TOLERANCE = 1e-4
FULL = pytest.param(cases.LIGHTNING_DIT_FULL, marks=pytest.mark.slow, id='full width')


def _ours(settings):
    network, table = cases.build('lightning_dit', settings)
    grid, channels, condition = cases.LIGHTNING_DIT_GRID, settings['channels'], cases.dit_condition()
    x = cases.image(grid, channels)
    params = cases.parameters(network, table, x, condition)
    return x, params, cases.run(network, params, x, condition, cases.cotangent(grid, channels))


def _assert_equals(ours, reference):
    """Ours against the authors' results, as far as those are there."""
    out, by_x, by_params = ours[2]
    ours = to_published(lightning_dit_names.authors(1), by_params) | {'out': out, 'by_x': by_x}
    assert len(reference) >= 20 and set(reference) <= set(ours)
    assert not disagreements(ours, reference, TOLERANCE)


@pytest.mark.parametrize('case', list(cases.LIGHTNING_DIT_CASES))
def test_golden(case):
    every, prefix = stored('lightning_dit'), f'{case}/'
    reference = {name.removeprefix(prefix): every[name] for name in every.files if name.startswith(prefix)}
    _assert_equals(_ours(cases.LIGHTNING_DIT_CASES[case]), reference)


@pytest.mark.parity
@pytest.mark.parametrize(
    'settings',
    [*(pytest.param(settings, id=case) for case, settings in cases.LIGHTNING_DIT_CASES.items()), FULL],
)
def test_output_and_gradients_equal_authors(settings):
    pytest.importorskip('torch')
    pytest.importorskip('einops')
    if not authors.checkout('JAXGEN_LIGHTNINGDIT'):
        pytest.skip("JAXGEN_LIGHTNINGDIT names no checkout of the authors' code")
    x, params, _ = ours = _ours(settings)
    table = lightning_dit_names.authors(1)
    model = authors.lightning_dit_model(to_published(table, params), settings)
    authors.assert_loads(model, table, params)
    _assert_equals(ours, authors.run_labels(model, x, settings))


def test_bfloat16_stays_near_float32():
    settings = cases.LIGHTNING_DIT_CASES['qk_norm']
    x, params, (out, _, _) = _ours(settings)
    half = lightning_dit.build(**settings, dtype='bfloat16', remat='named')
    low = jax.jit(lambda p: half.apply({'params': p}, x, cases.TIMES, cases.dit_condition())[0])(params)
    assert low.dtype == jnp.float32
    assert 1e-4 < relative_error(low, out) < 5e-2


@pytest.mark.parametrize(
    ('size', 'patch', 'count'),
    # The authors' own classes counted in torch, without the fixed position table.
    [('B', 1, 130_359_584), ('XL', 1, 674_961_824), ('1p0B', 2, 1_029_302_912), ('1p6B', 1, 1_631_308_368)],
)
def test_published_parameter_counts(size, patch, count):
    network = lightning_dit.build(size=size, patch=patch)
    shape = jax.ShapeDtypeStruct
    condition = {'label': shape((1,), jnp.int32), 'drop': shape((1,), bool)}
    x, t = shape((1, 16, 16, 32), jnp.float32), shape((1,), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), x, t, condition)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
