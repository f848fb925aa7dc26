"""Decoding token after token against the authors' generation, the cache, what is forced, what is refused."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import llamagen_cases as cases
from golden.seeded import normal, relative_error, stored

from jaxgen.autoregressive import choose, sampler
from jaxgen.autoregressive.orders import raster
from jaxgen.conditioning.request import Request
from jaxgen.models import llamagen, maskgit
from jaxgen.recipe import Network
from jaxgen.tokenizers import vqgan
from jaxgen.tokenizers.bottlenecks import vq
from jaxgen.weights import llamagen as names
from jaxgen.weights.names import to_published

TIE, TOLERANCE = 1e-4, 1e-5
BATCH = len(cases.LABELS)


def tokenizer(scales=()):
    bottleneck = vq.build(cases.TINY['codes'], 4, scales)
    return vqgan.build(2 * cases.SIDE, bottleneck, widths=(8, 16), blocks=1, groups=4, attention=())


def made(settings, scales=(), **order):
    """A sampler, its networks' parameters, and a request."""
    own = tokenizer(scales)
    network = llamagen.build(**settings | {'scales': own.scales})
    params = {'model': cases.parameters(network), **own.init(jax.random.key(0))}
    cond, null = (
        jax.tree.map(jnp.asarray, cases.condition(settings, np.full(BATCH, drop))) for drop in (False, True)
    )
    request = Request(cond, null, jax.random.split(jax.random.key(1), BATCH))
    return sampler.build({'model': Network(network)}, own, raster.build(**order)), params, request


def decoder(built):
    return jax.jit(lambda params, request, knobs: built.decode(params, request, knobs)[1:])


@pytest.fixture(scope='module', params=list(cases.CASES))
def authors_case(request):
    settings = cases.CASES[request.param]
    built, params, asked = made(settings)
    return request.param, settings, built, params, asked, decoder(built)


@pytest.fixture(scope='module')
def parts():
    """Of several scales, which the decoded tokens say more of than of one."""
    built, params, request = made(cases.TINY, (1, 2, 3))
    return built, params, request, decoder(built)


def check_generation(built, decode, params, asked, reference, **knobs):
    """Guided logits equal; codes too, but for near ties, which are counted."""
    (codes,), (told,) = decode(params, asked, built.knobs(guidance=cases.GUIDANCE, top_k=1, **knobs))
    guided = choose.guided(told, cases.GUIDANCE)
    if knobs:
        late = jnp.arange(codes.shape[1])[:, None] >= knobs['guided']
        guided = jnp.where(late, told[:BATCH], guided)
    margins = np.sort(reference['guided'], -1)
    near = margins[..., -1] - margins[..., -2] < TIE
    print(f'{near.sum()} of {near.size} choices are near ties')
    assert relative_error(guided, reference['guided']) < TOLERANCE
    assert not ((codes != reference['codes']) & ~near).any()


def test_golden(authors_case):
    case, _, built, params, asked, decode = authors_case
    every = stored('llamagen')
    for run, knobs in (('', {}), ('ended/', {'guided': cases.GUIDED})):
        reference = {name: every[f'{case}/{run}{name}'] for name in ('codes', 'guided')}
        check_generation(built, decode, params, asked, reference, **knobs)
    assert (every[f'{case}/codes'] != every[f'{case}/ended/codes']).any()


@pytest.mark.parity
def test_the_likeliest_codes_equal_authors(authors_case):
    pytest.importorskip('torch')
    if not os.environ.get('JAXGEN_LLAMAGEN'):
        pytest.skip("JAXGEN_LLAMAGEN names no checkout of the authors' code")
    _, settings, built, params, asked, decode = authors_case
    weights = to_published(names.layouts(built.network.module)['authors'], params['model'])
    model = cases.authors(os.environ['JAXGEN_LLAMAGEN'], settings, weights)
    check_generation(built, decode, params, asked, cases.generated(model, settings))
    ended = cases.generated(model, settings, cases.GUIDED - 2)
    check_generation(built, decode, params, asked, ended, guided=cases.GUIDED)


def painted(parts):
    """A request to paint over the left column of a picture."""
    built, _, request, _ = parts
    mask = np.zeros((1, cases.SIDE, cases.SIDE, 1), np.float32)
    mask[:, :, 0] = 1
    return request.replace(init=normal('init', (BATCH, *built.tokenizer.latent)), mask=mask)


def known(parts, request):
    return np.concatenate(parts[0].tokenizer.quantize(parts[1], request.init), axis=1)


def test_the_cache_changes_nothing(parts):
    built, params, _, decode = parts
    bare = made(cases.TINY, (1, 2, 3), cache=False)[0]
    request, knobs = painted(parts), built.knobs(guidance=3, temperature=2, top_k=20)
    (codes,), (told,) = decode(params, request, knobs)
    (expected,), (whole,) = decoder(bare)(params, request, knobs)
    assert relative_error(told, whole) < TOLERANCE
    np.testing.assert_array_equal(codes, expected)
    held = built.held(2)
    assert held['tokens'].shape == (2, 14) and held['cache']['key'].shape == (3, 4, 14, 3, 8)
    assert bare.held(2)['cache'] is None


def test_what_it_was_told_is_what_the_network_says_of_all_that_was_drawn(parts):
    built, params, request, decode = parts
    (codes,), (told,) = decode(params, request, built.knobs(guidance=2))
    for half, cond in ((slice(BATCH), request.cond), (slice(BATCH, None), request.null)):
        logits = built.network(params['model'], codes, None, cond)[0]
        assert relative_error(told[half], logits) < TOLERANCE


def test_knobs_compile_nothing_anew_and_an_image_is_the_same_in_any_batch(parts):
    built, params, request, decode = parts
    knobs = built.knobs(guidance=2, top_p=0.9)
    (whole,), _ = decode(params, request, knobs)
    before = decode._cache_size()
    for changes in ({'guided': 4}, {'top_k': 5, 'top_p': 0.9}, {'temperature': 0.5}):
        (other,), _ = decode(params, request, built.knobs(guidance=2, **changes))
        assert (other != whole).any()
    assert decode._cache_size() == before
    (alone,), _ = decode(params, jax.tree.map(lambda a: a[1:2] if np.ndim(a) else a, request), knobs)
    np.testing.assert_array_equal(whole[1:2], alone)


def test_known_tokens_stay(parts):
    built, params, _, decode = parts
    request, knobs = painted(parts), built.knobs()
    expected = known(parts, request)
    (codes,), _ = decode(params, request, knobs)
    painted_over = np.array([0, *[1, 0] * 2, *[1, 0, 0] * 3], bool)  # the one token of the first scale stays
    np.testing.assert_array_equal(codes[:, ~painted_over], expected[:, ~painted_over])
    assert (codes != expected)[:, painted_over].mean() > 0.5
    (codes,), _ = decode(params, request.replace(mask=np.ones_like(request.mask), start=0.5), knobs)
    np.testing.assert_array_equal(codes[:, :7], expected[:, :7])
    assert (codes != expected)[:, 7:].mean() > 0.5
    latents = jax.jit(built.sample)(params, request.replace(mask=np.zeros_like(request.mask)), knobs)
    by_scale = tuple(np.split(expected, (1, 5), axis=1))
    np.testing.assert_allclose(latents, built.tokenizer.embed(params, by_scale), atol=1e-6)


def test_what_goes_another_way_is_refused(parts):
    built = parts[0]
    other = Network(maskgit.build(scales=((3, 3),), codes=cases.TINY['codes'], size='tiny'))
    with pytest.raises(ValueError, match="'raster' is of networks that see the tokens before one alone"):
        sampler.build({'model': other}, built.tokenizer, raster.build())
    with pytest.raises(ValueError, match=r'draws latents of \(3, 3, 4\) alone'):
        built.at((6, 3, 4))
