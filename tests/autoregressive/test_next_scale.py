"""Decoding by scales against the authors' sampler, the cache, what is forced, and how tokens are chosen."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import make_vqgan, var_cases
from golden.seeded import relative_error, stored

from jaxgen.autoregressive import choose, sampler
from jaxgen.autoregressive.orders import next_scale
from jaxgen.conditioning import labels
from jaxgen.conditioning.request import Request
from jaxgen.models import llamagen, var
from jaxgen.objectives import next_scale as objective
from jaxgen.recipe import Network
from jaxgen.weights import var as names
from jaxgen.weights.names import to_published

TIE, TOLERANCE = 1e-4, 1e-5
BATCH = len(var_cases.LABELS)


@pytest.fixture(scope='module')
def parts():
    """A sampler of the shared case, its networks' parameters, and a request."""
    tokenizer = make_vqgan.tokenizer(make_vqgan.TINY)
    network = var.build(**var_cases.TINY)
    params = {'model': var_cases.parameters(network), 'tokenizer': make_vqgan.parameters(tokenizer)}
    label = jnp.asarray(var_cases.LABELS)
    cond, null = ({'label': label, 'drop': jnp.full(BATCH, drop)} for drop in (False, True))
    request = Request(cond, null, jax.random.split(jax.random.key(1), BATCH))
    return built(tokenizer, network), params, request


def built(tokenizer, network, **order):
    return sampler.build({'model': Network(network)}, tokenizer, next_scale.build({}, **order))


def decoder(made):
    return jax.jit(lambda params, request, knobs: made.decode(params, request, knobs))


@pytest.fixture(scope='module')
def decode(parts):
    return decoder(parts[0])


def agree(chosen, logits, expected, expected_logits):
    """Logits equal wherever all earlier choices are; codes too, but for near ties, which are counted."""
    margins = np.sort(expected_logits, -1)
    near = margins[..., -1] - margins[..., -2] < TIE
    print(f'{near.sum()} of {near.size} choices are near ties')
    assert relative_error(logits, expected_logits) < TOLERANCE
    assert not ((chosen != expected) & ~near).any()


def request_of(parts, reference):
    made, params, request = parts
    if reference == 'free':
        return request
    mask = np.zeros((1, *made.tokenizer.latent[:2], 1), np.float32)
    mask[0][var_cases.PAINTED] = 1
    return request.replace(init=var_cases.picture(made.tokenizer), mask=mask)


def check_generation(parts, decode, run, reference):
    made, params, _ = parts
    knobs = made.knobs(guidance=var_cases.GUIDANCE, top_k=1)
    latents, codes, logits = decode(params, request_of(parts, run), knobs)
    logits, codes = np.concatenate(logits, 1), np.concatenate(codes, 1)
    if run == 'painted':  # the authors count what they then replace as chosen
        known = np.concatenate(made.tokenizer.quantize(params, var_cases.picture(made.tokenizer)), axis=1)
        assert 0 < (codes != known).sum() < codes.size
        codes = np.where(codes == known, logits.argmax(-1), codes)
    agree(codes, logits, reference['codes'], reference['guided'])
    assert relative_error(latents, reference['latents']) < TOLERANCE


@pytest.mark.parametrize('run', ['free', 'painted'])
def test_golden(parts, decode, run):
    every = stored('var')
    reference = {name: every[f'{run}/{name}'] for name in ('codes', 'guided', 'latents')}
    check_generation(parts, decode, run, reference)


@pytest.mark.parity
@pytest.mark.parametrize('run', ['free', 'painted'])
def test_the_likeliest_codes_equal_authors(parts, decode, run):
    pytest.importorskip('torch')
    if not os.environ.get('JAXGEN_VAR'):
        pytest.skip("JAXGEN_VAR names no checkout of the authors' code")
    made, params, _ = parts
    weights = to_published(names.authors(False), params['model'])
    tokenizer = make_vqgan.published(made.tokenizer)
    model = var_cases.authors(os.environ['JAXGEN_VAR'], var_cases.TINY, weights, tokenizer)
    known = made.tokenizer.quantize(params, var_cases.picture(made.tokenizer)) if run == 'painted' else None
    check_generation(parts, decode, run, var_cases.generated(model, known))


def test_the_cache_changes_nothing(parts, decode):
    made, params, request = parts
    bare = built(made.tokenizer, made.network.module, cache=False)
    knobs = made.knobs(guidance=3, temperature=2, top_k=20)
    for given in (request, request_of(parts, 'painted')):
        _, codes, logits = decode(params, given, knobs)
        _, expected, whole = decoder(bare)(params, given, knobs)
        agree(*(np.concatenate(each, 1) for each in (codes, logits, expected, whole)))
    assert [each['key'].shape for each in made.held(2)['caches']] == [(3, 4, 30, 3, 8)]
    assert bare.held(2)['caches'] == []


def test_knobs_compile_nothing_anew(parts, decode):
    made, params, request = parts
    decode(params, request, made.knobs())
    before = decode._cache_size()
    for knobs in ({'guidance': 2}, {'top_k': 5, 'top_p': 0.9}, {'cooling': 0.5, 'ramp': 0, 'smooth': 1}):
        decode(params, request, made.knobs(**knobs))
    assert decode._cache_size() == before


def test_an_image_is_the_same_in_any_batch(parts, decode):
    made, params, request = parts
    whole = decode(params, request, made.knobs(guidance=2))[1]
    alone = decode(
        params, jax.tree.map(lambda a: a[1:2] if np.ndim(a) else a, request), made.knobs(guidance=2)
    )[1]
    for all_of_them, one in zip(whole, alone):
        np.testing.assert_array_equal(all_of_them[1:2], one)


def test_a_mixture_of_one_code_is_the_code(parts, decode):
    made, params, request = parts
    hard, soft = (decode(params, request, made.knobs(top_k=1, smooth=smooth))[0] for smooth in (0, 1))
    np.testing.assert_allclose(soft, hard, atol=1e-5)
    hard, soft = (decode(params, request, made.knobs(smooth=smooth))[0] for smooth in (0, 1))
    assert jnp.abs(soft - hard).max() > 0.01


@pytest.mark.parametrize(
    ('masked', 'start', 'first'),
    [
        (True, 1.0, 1),  # where a mask is given the scale of one token stays
        (True, 0.75, 1),
        (True, 0.5, 2),
        (True, 0.3, 3),
        pytest.param(False, 1.0, 0, marks=pytest.mark.slow),
        pytest.param(False, 0.5, 2, marks=pytest.mark.slow),
    ],
)
def test_a_share_of_the_schedule_keeps_the_scales_before(parts, decode, masked, start, first):
    made, params, _ = parts
    request = request_of(parts, 'painted')
    request = request.replace(mask=np.ones_like(request.mask) if masked else None, start=start)
    known = made.tokenizer.quantize(params, request.init)
    codes = decode(params, request, made.knobs())[1]
    same = [bool((one == other).all()) for one, other in zip(codes, known)]
    assert same == [k < first for k in range(4)]


def test_forcing_all_gives_the_picture_back(parts, decode):
    made, params, _ = parts
    request = request_of(parts, 'painted')
    latents, codes, _ = decode(params, request.replace(mask=np.zeros_like(request.mask)), made.knobs())
    expected = made.tokenizer.quantize(params, request.init)
    jax.tree.map(np.testing.assert_array_equal, codes, expected)
    np.testing.assert_allclose(latents, made.tokenizer.embed(params, expected), atol=1e-5)


@pytest.mark.parametrize('cache', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_refiner_goes_on_from_a_draft(parts, decode, cache):
    made, params, request = parts
    small = var.build(**(var_cases.TINY | {'depth': 1, 'hidden': 16, 'heads': 2}))
    params = {**params, 'small': var_cases.parameters(small)}
    networks = {'model': made.network, 'small': Network(small)}
    order = next_scale.build(networks, cache, refiner='small', drafted=2)
    both = sampler.build(networks, made.tokenizer, order)
    knobs = made.knobs(guidance=3, top_k=1)
    _, codes, logits = decoder(both)(params, request, knobs)
    drafted = decode(params, request, knobs)[1]
    for k in (0, 1):
        np.testing.assert_array_equal(codes[k], drafted[k])
    # The refiner's own logits of all that was drawn, at once.
    told = made.tokenizer.teacher(params, codes)
    apply = jax.jit(lambda cond: small.apply({'params': params['small']}, told, None, cond)[0])
    cond, null = apply(request.cond), apply(request.null)
    for k, start, stop in ((2, 5, 14), (3, 14, 30)):
        expected = (null + (1 + 2 * k / 3) * (cond - null))[:, start:stop]
        np.testing.assert_allclose(logits[k], expected, atol=1e-5 * float(jnp.abs(expected).max()))
    if cache:
        assert [each['key'].shape for each in both.held(1)['caches']] == [(3, 2, 30, 3, 8), (1, 2, 30, 2, 8)]


def test_a_refiner_that_is_not_there_or_has_nothing_to_do_is_refused(parts):
    made, params, request = parts
    idle = next_scale.build({'model': made.network}, refiner='model', drafted=4)
    with pytest.raises(ValueError, match='drafted is 4 of 4 scales'):
        sampler.build({'model': made.network}, made.tokenizer, idle).sample(params, request, made.knobs())
    with pytest.raises(ValueError, match="refiner is 'small', and the networks are model"):
        next_scale.build({'model': parts[0].network}, refiner='small')


def test_a_network_that_does_not_go_by_scales_is_refused(parts):
    made, said = parts[0], 'is of networks that predict one scale after another, and model LlamaGen is none'
    sizes = {'codes': 16, 'depth': 1, 'hidden': 16, 'heads': 2, 'classes': 3}
    other = Network(llamagen.build(scales=made.tokenizer.scales, **sizes))
    with pytest.raises(ValueError, match="sampler.order 'next_scale' " + said):
        sampler.build({'model': other}, made.tokenizer, next_scale.build({}))
    networks = {'model': made.network, 'small': other}
    with pytest.raises(ValueError, match='sampler.order.refiner ' + said):
        sampler.build(networks, made.tokenizer, next_scale.build(networks, refiner='small', drafted=2))
    with pytest.raises(ValueError, match="objective 'next_scale' " + said):
        objective.build({'model': other}, labels.build(3), made.tokenizer)


def test_the_likeliest_are_kept():
    logits = jnp.log(jnp.array([[[0.05, 0.4, 0.3, 0.05, 0.2]]]))

    def kept(top_k, top_p):
        return np.isfinite(choose.likeliest(logits, jnp.int32(top_k), jnp.float32(top_p)))[0, 0].tolist()

    assert kept(0, 0) == [True] * 5
    assert kept(2, 0) == [False, True, True, False, False]
    assert kept(9, 0) == [True] * 5
    assert kept(0, 0.3) == [False, True, False, False, False]
    assert kept(0, 0.65) == [False, True, True, False, False]
    assert kept(0, 0.85) == [False, True, True, False, True]
    # Of the two likeliest, 0.57 and 0.43, one makes up half.
    assert kept(2, 0.5) == [False, True, False, False, False]


def test_draws_follow_the_logits():
    logits = jnp.log(jnp.array([[[0.1, 0.6, 0.3]]]))
    keys = jax.random.split(jax.random.key(0), 6000)
    codes = jax.vmap(lambda key: choose.drawn(logits, key[None]))(keys).ravel()
    np.testing.assert_allclose(jnp.bincount(codes, length=3) / 6000, [0.1, 0.6, 0.3], atol=0.02)


def test_guidance_of_one_is_none():
    both = jax.random.normal(jax.random.key(0), (4, 3, 5))
    np.testing.assert_allclose(choose.guided(both, 1.0), both[:2], atol=1e-6)
    np.testing.assert_allclose(choose.guided(both, 0.0), both[2:], atol=1e-6)


@pytest.mark.parametrize(
    ('knobs', 'said'),
    [
        ({'steps': 3}, "no knob 'steps'"),
        ({'temperature': 0}, 'temperature is 0'),
        ({'top_p': 1.5}, 'top_p 1.5'),
        ({'top_k': 1.5}, 'top_k is 1.5'),
        ({'ramp': -1}, 'ramp is -1'),
        ({'guidance': float('nan')}, 'must be finite'),
    ],
)
def test_knobs_without_sense_are_refused(parts, knobs, said):
    with pytest.raises(ValueError, match=said):
        parts[0].knobs(**knobs)


def test_another_size_is_refused(parts):
    assert parts[0].at((4, 4, 8)) is parts[0]
    with pytest.raises(ValueError, match=r'draws latents of \(4, 4, 8\) alone'):
        parts[0].at((8, 4, 8))
