"""PixArt against diffusers and the authors' code with the same random weights, live and stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import authors, cases, diffusers_networks
from golden.seeded import disagreements, relative_error, stored

from jaxgen.models import pixart
from jaxgen.weights import pixart as pixart_names
from jaxgen.weights.names import to_published

TOLERANCE = 1e-4
DROP = (False, False, True)
FULL = {'alpha at full width': cases.ALPHA_FULL, 'Sigma at full width': cases.SIGMA_FULL}


def _ours(settings, drop=(False, False, False)):
    network, table = cases.build('pixart', settings)
    x, condition = cases.image(cases.PIXART_GRID), cases.pixart_condition(drop, settings)
    params = cases.parameters(network, table, x, condition)
    return network, params, cases.run(network, params, x, condition, cases.cotangent(cases.PIXART_GRID))


@pytest.mark.parity
@pytest.mark.parametrize(
    'settings',
    [
        pytest.param(cases.PIXART, id='plain'),
        pytest.param(cases.PIXART_CASES['micro'], id='micro'),
        pytest.param(cases.ALPHA_FULL, marks=pytest.mark.slow, id='full width'),
    ],
)
def test_output_and_gradients_equal_diffusers(settings):
    torch = pytest.importorskip('torch')
    network, params, results = _ours(settings)
    table = pixart_names.layouts(network)['diffusers']
    theirs = diffusers_networks.build(pixart_names.to_config(network), table, params)
    micro, condition = network.micro_conditioning, cases.pixart_condition(settings=settings)
    sizes = {'resolution': torch.from_numpy(cases.SIZES), 'aspect_ratio': torch.from_numpy(cases.ASPECTS)}
    inputs = {
        'encoder_hidden_states': torch.from_numpy(condition['text']),
        'timestep': torch.from_numpy(cases.TIMES),
        'added_cond_kwargs': sizes if micro else dict.fromkeys(sizes),
        'encoder_attention_mask': torch.from_numpy(condition['text_mask']),
    }
    x = cases.image(cases.PIXART_GRID)
    diffusers_networks.assert_equals(theirs, table, results, x, inputs, TOLERANCE)


def _assert_equals(ours, reference):
    """Ours against the authors' results, as far as those are there."""
    _, _, (out, by_x, by_params) = ours
    ours = to_published(pixart_names.authors(2), by_params) | {'out': out, 'by_x': by_x}
    assert len(reference) >= 20 and set(reference) <= set(ours)
    assert not disagreements(ours, reference, TOLERANCE)


@pytest.mark.parametrize('case', list(cases.PIXART_CASES))
def test_golden(case):
    every, prefix = stored('pixart'), f'{case}/'
    reference = {name.removeprefix(prefix): every[name] for name in every.files if name.startswith(prefix)}
    _assert_equals(_ours(cases.PIXART_CASES[case], drop=DROP), reference)


@pytest.mark.parity
@pytest.mark.parametrize(
    'settings',
    [
        *(pytest.param(settings, id=case) for case, settings in cases.PIXART_CASES.items()),
        *(pytest.param(settings, marks=pytest.mark.slow, id=case) for case, settings in FULL.items()),
    ],
)
def test_output_and_gradients_equal_authors(settings):
    pytest.importorskip('torch')
    if not authors.checkout('JAXGEN_PIXART_SIGMA'):
        pytest.skip("JAXGEN_PIXART_SIGMA names no checkout of the authors' code")
    ours = _ours(settings, drop=DROP)
    table = pixart_names.authors(2)
    model = authors.pixart_model(to_published(table, ours[1]), settings)
    authors.assert_loads(model, table, ours[1])
    _assert_equals(ours, authors.run_pixart(model, settings, DROP))


def test_drop_replaces_text_under_the_captions_mask():
    network, params, _ = _ours(cases.PIXART)
    x, condition = cases.image(cases.PIXART_GRID), cases.pixart_condition((True, True, True))
    replaced = condition | {'text': np.tile(params['null_text'][None], (3, 1, 1)), 'drop': np.zeros(3, bool)}
    run = jax.jit(lambda condition: network.apply({'params': params}, x, cases.TIMES, condition)[0])
    np.testing.assert_allclose(run(condition), run(replaced), rtol=1e-6)
    other = condition | {'text_mask': np.ones_like(condition['text_mask'])}
    difference = np.abs(run(condition) - run(other)).max(axis=(1, 2, 3))
    assert difference[0] == 0 and (difference[1:] > 1e-3).all()


def test_segments_follow_the_compression():
    network = pixart.build(hidden=24, depth=6, heads=3, compress_ratio=2, compress_layers=(1, 2, 5))
    assert [(s.length, s.block.compress) for s in network._segments()] == [(1, 1), (2, 2), (2, 1), (1, 2)]
    with pytest.raises(ValueError, match='compress_layers'):
        pixart.build(depth=6, compress_ratio=2, compress_layers=(6,))
    with pytest.raises(ValueError, match='compress_ratio'):
        pixart.build(depth=6, compress_ratio=2)


def test_caption_of_another_width_is_refused():
    network, params, _ = _ours(cases.PIXART)
    condition = cases.pixart_condition() | {'text': np.zeros((3, 6, 11), np.float32)}
    with pytest.raises(ValueError, match='caption_width'):
        network.apply({'params': params}, cases.image(cases.PIXART_GRID), cases.TIMES, condition)


def test_bfloat16_stays_near_float32():
    network, params, (out, _, _) = _ours(cases.PIXART)
    half = pixart.build(**cases.PIXART, dtype='bfloat16', remat='named')
    x, condition = cases.image(cases.PIXART_GRID), cases.pixart_condition()
    low = jax.jit(lambda p: half.apply({'params': p}, x, cases.TIMES, condition)[0])(params)
    assert low.dtype == jnp.float32
    assert 1e-4 < relative_error(low, out) < 5e-2


@pytest.mark.parametrize(
    ('settings', 'count'),
    # The authors' own classes counted in torch, with the null caption and without the fixed position table.
    [
        ({}, 611_347_616),
        ({'micro_conditioning': True}, 611_840_672),
        ({'caption_length': 300}, 612_084_896),
        ({'caption_length': 300, 'compress_ratio': 2, 'compress_layers': tuple(range(14, 28))}, 612_197_792),
    ],
)
def test_published_parameter_counts(settings, count):
    network = pixart.build(**settings)
    shape = jax.ShapeDtypeStruct
    length = settings.get('caption_length', 120)
    condition = {
        'text': shape((1, length, 4096), jnp.float32),
        'text_mask': shape((1, length), bool),
        'drop': shape((1,), bool),
        'size': shape((1, 2), jnp.float32),
        'aspect': shape((1, 1), jnp.float32),
    }
    x, t = shape((1, 64, 64, 4), jnp.float32), shape((1,), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), x, t, condition)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
