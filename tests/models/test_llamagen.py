"""LlamaGen against the authors' code with the same random weights, live and stored; mask, cache and sizes."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import llamagen_cases as cases
from golden.seeded import disagreements, relative_error, stored

from jaxgen.layers.rope import rope_2d, rope_scales
from jaxgen.models import llamagen
from jaxgen.weights import llamagen as names
from jaxgen.weights.names import to_jaxgen, to_published

TOLERANCE = 1e-4
SEVERAL = cases.TINY | {'scales': ((1, 1), (2, 2), (3, 3))}
FULL = pytest.param(cases.FULL, marks=pytest.mark.slow, id='full width')


def _ours(settings):
    network = llamagen.build(**settings)
    params = cases.parameters(network)
    return network, params, cases.run(network, params, settings)


@pytest.mark.parametrize('case', list(cases.CASES))
def test_golden(case):
    every, prefix = stored('llamagen'), f'{case}/'
    reference = {name.removeprefix(prefix): every[name] for name in every.files if name.startswith(prefix)}
    for generated in ('codes', 'guided', 'ended/codes', 'ended/guided', 'turns'):
        del reference[generated]
    ours = _ours(cases.CASES[case])[2]
    assert len(reference) >= 9 and set(reference) <= set(ours)
    assert not disagreements(ours, reference, TOLERANCE)


@pytest.mark.parametrize('case', list(cases.CASES))
def test_rotations_are_the_authors(case):
    settings, turns = cases.CASES[case], stored('llamagen')[f'{case}/turns']
    prefix = settings.get('caption_length', 1)
    assert (turns[:prefix] == 0).all()  # so that the prefix has neither query nor key
    angles = rope_2d(settings['scales'][0], settings['hidden'] // settings['heads'])
    np.testing.assert_allclose(turns[prefix:, :, 0], np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(turns[prefix:, :, 1], np.sin(angles), atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize(
    'settings',
    [*(pytest.param(settings, id=case) for case, settings in cases.CASES.items()), FULL],
)
def test_logits_and_gradients_equal_authors(settings):
    pytest.importorskip('torch')
    if not os.environ.get('JAXGEN_LLAMAGEN'):
        pytest.skip("JAXGEN_LLAMAGEN names no checkout of the authors' code")
    network, params, ours = _ours(settings)
    table = names.layouts(network)['authors']
    model = cases.authors(os.environ['JAXGEN_LLAMAGEN'], settings, to_published(table, params))
    published = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(table, published, params), params)
    assert not disagreements(ours, cases.run_authors(model, settings), TOLERANCE)


def _tiny(settings=SEVERAL, **changes):
    network = llamagen.build(**settings | changes)
    return network, cases.parameters(network), cases.condition(settings | changes)


def _codes(network):
    shape = (len(cases.LABELS), sum(network.lengths))
    return np.random.RandomState(1).randint(0, network.codes, shape)


@pytest.mark.parametrize('settings', [SEVERAL, cases.TEXT], ids=['scales', 'text'])
def test_no_logit_sees_its_own_code_or_a_later_one_and_each_sees_every_one_before(settings):
    network, params, condition = _tiny(settings)
    logits = jax.jit(lambda x: network.apply({'params': params}, x, None, condition)[0])
    codes = _codes(network)
    whole = logits(codes)
    for token in range(codes.shape[1]):
        other = codes.copy()
        other[:, token] = (other[:, token] + 1) % network.codes
        moved = np.abs(whole - logits(other))
        assert moved[:, : token + 1].max() == 0
        if token + 1 < codes.shape[1]:
            assert moved[:, token + 1 :].max(-1).min() > 1e-6


def test_padding_is_not_seen_and_what_is_asked_for_is():
    network, params, condition = _tiny(cases.TEXT)
    logits = jax.jit(lambda cond: network.apply({'params': params}, _codes(network), None, cond)[0])
    whole = logits(condition)
    padding = ~condition['text_mask'][..., None]
    np.testing.assert_array_equal(whole, logits(condition | {'text': condition['text'] + 9 * padding}))
    real = condition | {'text': condition['text'] + 0.1 * ~padding}
    moved = np.abs(whole - logits(real)).max((1, 2))
    assert (moved[:2] > 1e-4).all() and moved[2] == 0  # the last one's is left out


@pytest.mark.parametrize(
    'changes',
    [
        pytest.param({}, id='scales'),
        pytest.param({'scan': False, 'scales': ((3, 3),)}, id='one scale'),
        pytest.param({'caption_width': 10, 'caption_length': 7}, id='text'),
        pytest.param({'caption_width': 10, 'caption_length': 7, 'open_prefix': True}, id='open text'),
    ],
)
def test_the_cache_changes_no_logit(changes):
    network, params, condition = _tiny(**changes)
    codes = _codes(network)

    @jax.jit
    def whole(codes):
        return network.apply({'params': params}, codes, None, condition, capture=('1.out',))[:2]

    @functools.partial(jax.jit, static_argnames='first')
    def step(code, t, memory, first=False):
        return network.apply({'params': params}, code, t, condition, memory=memory, capture=('1.out',))

    expected, features = whole(codes)
    logits, states, memory = step(codes[:, :0], 0, network.cache(len(codes)), first=True)
    parts = [(logits, states['1.out'])]
    for t in range(codes.shape[1] - 1):
        logits, states, memory = step(codes[:, t : t + 1], t, memory)
        parts.append((logits, states['1.out']))
    assert step._cache_size() == 2
    logits, states = (jnp.concatenate(each, axis=1) for each in zip(*parts))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    # Padding is another matter: it sees but itself, and nobody sees it.
    real = np.ones(states.shape[:2], bool)
    if 'text' in condition:
        real[:, : network.prefix] = condition['text_mask'][:, ::-1]
    np.testing.assert_allclose(states[real], features['1.out'][real], atol=1e-5)
    assert memory['key'].shape[2] == network.prefix + codes.shape[1] - 1


def test_cells_of_all_scales_lie_over_each_other():
    angles = rope_scales(((1, 1), (2, 2), (4, 4)), 8)
    rows, columns = angles[:, 0], angles[:, 2]  # of frequency one
    np.testing.assert_allclose(rows[:5], [1.5, 0.5, 0.5, 2.5, 2.5])
    np.testing.assert_allclose(columns[:5], [1.5, 0.5, 2.5, 0.5, 2.5])
    np.testing.assert_array_equal(angles[5:], rope_2d((4, 4), 8))


def test_values_are_left_out_as_often_as_asked_and_by_each_examples_key():
    network, params, condition = _tiny(dropout=0.25, token_dropout=0.5)
    keys = jax.random.split(jax.random.key(0), len(cases.LABELS))

    @jax.jit
    def run(keys, condition, codes):
        return network.apply(
            {'params': params}, codes, None, condition, per_layer=network.drops(keys), capture=('0.delta',)
        )[:2]

    codes = _codes(network)
    logits, _ = run(keys, condition, codes)
    again, _ = run(keys[1:2], jax.tree.map(lambda a: a[1:2], condition), codes[1:2])
    np.testing.assert_allclose(again, logits[1:2], atol=1e-5)
    other, _ = run(keys[::-1], condition, codes)
    assert jnp.abs(other - logits).max() > 1e-3
    assert llamagen.build(**cases.TINY, dropout=0.0, token_dropout=0.0).drops(keys) == {}


def test_bfloat16_stays_near_float32():
    network, params, expected = _ours(cases.TEXT)
    half = llamagen.build(**cases.TEXT, dtype='bfloat16', remat='named')
    apply = jax.jit(lambda codes: half.apply({'params': params}, codes, None, cases.condition(cases.TEXT))[0])
    logits = apply(cases.tokens(cases.TEXT))
    assert logits.dtype == jnp.float32
    assert relative_error(np.asarray(logits), expected['logits']) < 0.05
    assert half.cache(1)['key'].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ('size', 'text', 'count'),
    # The authors' own class counted in torch; with the buffer that is no caption.
    [
        ('B', False, 110_888_448),
        ('L', False, 342_910_976),
        ('XL', False, 774_699_520),
        ('XXL', False, 1_410_972_672),
        ('3B', False, 3_096_659_200),
        ('XL', True, 777_923_840),
    ],
)
def test_published_parameter_counts(size, text, count):
    network = llamagen.build(size=size, caption_width=2048 if text else None)
    params = jax.eval_shape(network.init, jax.random.key(0), *names.inputs(network))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="no size 'S'"):
        llamagen.build(size='S')
    with pytest.raises(ValueError, match='4 x heads must divide the width'):
        llamagen.build(hidden=24, heads=4)
    network, params, condition = _tiny(cases.TEXT)
    short = condition | {'text': condition['text'][:, :5], 'text_mask': condition['text_mask'][:, :5]}
    with pytest.raises(ValueError, match=r'text is \[5, 10\] and the network takes \[7, 10\]'):
        network.apply({'params': params}, _codes(network), None, short)
