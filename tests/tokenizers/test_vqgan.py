"""The convolutional tokenizer, with VAR's bottleneck against the authors' code, live and stored."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import make_vqgan as cases
from golden.seeded import disagreements, normal, relative_error, stored

from jaxgen.keys import split_examples
from jaxgen.layers.resize import resize
from jaxgen.tokenizers import vqgan
from jaxgen.tokenizers.bottlenecks import bsq, fsq, ibq, kl, residual, vq
from jaxgen.weights import vqgan as family
from jaxgen.weights.names import to_jaxgen, to_published

TOLERANCE = 1e-4
TIE = 1e-4  # distances of codes that are nearer to each other
SMALL = {'widths': (8, 16), 'blocks': 1, 'groups': 4, 'attention': ()}
BOTTLENECKS = {
    'residual': residual.build(16, 4, (1, 2, 4)),
    'pyramid': vq.build(16, 4, (1, 2, 4)),
    'vq': vq.build(16, 4),
    'fsq': fsq.build((4, 3, 3)),
    'bsq': bsq.build(6, groups=2),
    'ibq': ibq.build(16, 4),
}


def run(tokenizer, reference):
    """Ours, with the gradient of the quantizer's loss by the authors' latents."""
    params, batch = cases.parameters(tokenizer), len(reference['codes'])
    held, network = {'tokenizer': params}, tokenizer.network
    latents = reference.get('latents')
    if latents is None:
        latents = tokenizer.features(held, cases.image(tokenizer, batch))

    @jax.jit
    def results(params, image, latents):
        held = {'tokenizer': params}
        codes = tokenizer.quantize(held, latents)
        so_far, sums = tokenizer.start(batch), []
        for k, each in enumerate(codes):
            so_far, _ = tokenizer.feedback(held, k, each, so_far)
            sums.append(so_far)

        def cost(params, latents):
            keys = jax.random.split(jax.random.key(0), batch)
            found = network.apply(
                {'params': params}, '__call__', latents, tokenizer.scales, keys, method='through'
            )
            return found.loss.mean()

        loss, (by_params, by_latents) = jax.value_and_grad(cost, (0, 1))(params, latents)
        return {
            'latents': tokenizer.features(held, image),
            'codes': jnp.concatenate(codes, 1),
            'teacher': tokenizer.teacher(held, codes),
            'sums': jnp.stack(sums),
            'pixels': tokenizer.pixels(held, so_far),
            'loss': loss,
            'by_latents': by_latents,
        }, by_params

    found, by_params = results(params, cases.image(tokenizer, batch), latents)
    by_names = to_published(family.layouts(network)['authors'], by_params)
    return found | {f'by_{name}': array for name, array in by_names.items() if 'quantize' in name}


@functools.cache
def golden():
    found = {}
    for name, array in stored('vqgan').items():
        case, _, name = name.partition('/')
        found.setdefault(case, {})[name] = array
    return found


@pytest.mark.parametrize('case', cases.CASES)
def test_golden(case):
    reference = dict(golden()[case])
    ours = run(cases.tokenizer(cases.CASES[case]), reference)
    np.testing.assert_array_equal(ours['codes'], reference.pop('codes'))
    assert len(reference) == (15 if case == 'tiny' else 3)
    assert not disagreements(ours, reference, TOLERANCE)


def margins(tokenizer, latents, codes):
    """By scale how much nearer the nearest code is than the next, [B, L], after those of scales before."""
    held = {'tokenizer': cases.parameters(tokenizer)}
    table = np.float64(held['tokenizer']['bottleneck']['codebook']['table'])
    so_far, found = tokenizer.start(len(latents)), []
    for k, scale in enumerate(tokenizer.scales):
        left = np.float64(resize(latents - so_far, scale, 'area')).reshape(len(latents), -1, table.shape[1])
        if tokenizer.bottleneck.distance == 'cosine':
            left, table = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (left, table))
        nearest = np.partition(np.square(left[:, :, None] - table).sum(-1), 1)
        found.append(nearest[..., 1] - nearest[..., 0])
        so_far, _ = tokenizer.feedback(held, k, codes[k], so_far)
    return found


def check_own_codes(tokenizer, ours, reference):
    """From image to codes all ours: none differs before the first choice of two that are equally near."""
    ends = np.cumsum([rows * columns for rows, columns in tokenizer.scales])[:-1]
    held = {'tokenizer': cases.parameters(tokenizer)}
    own = [np.asarray(codes) for codes in tokenizer.quantize(held, ours['latents'])]
    theirs = np.split(reference['codes'], ends, axis=1)
    near = [found < TIE for found in margins(tokenizer, reference['latents'], theirs)]
    alike = np.ones(len(own[0]), bool)
    for one, other, tie in zip(own, theirs, near, strict=True):
        differing = (one != other) & alike[:, None]
        assert not (differing & ~tie).any()
        alike &= ~differing.any(1)
    unlike = sum((one != other).sum() for one, other in zip(own, theirs))
    print(f'{sum(tie.sum() for tie in near)} near ties, {unlike} codes differ from image to codes')


@pytest.mark.parity
@pytest.mark.parametrize('case', [*cases.CASES, pytest.param('full', marks=pytest.mark.slow)])
def test_equals_authors(case):
    pytest.importorskip('torch')
    if not os.environ.get('JAXGEN_VAR'):
        pytest.skip("JAXGEN_VAR names no checkout of the authors' code")
    tokenizer = cases.tokenizer(cases.FULL if case == 'full' else cases.CASES[case])
    reference = cases.authors(tokenizer, batch=1)
    ours = run(tokenizer, reference)
    ties = (np.asarray(ours['codes']) != reference['codes']).sum()
    print(f'{ties} of {reference["codes"].size} codes differ')
    print({name: relative_error(ours[name], reference[name]) for name in reference if name != 'codes'})
    assert ties == 0
    check_own_codes(tokenizer, ours, reference)
    reference.pop('codes')
    assert not disagreements(ours, reference, TOLERANCE)


def run_flexible():
    tokenizer = cases.flexible_tokenizer()
    params = {'tokenizer': cases.parameters(tokenizer)}

    @jax.jit
    def results(params, image):
        codes = tokenizer.codes(params, image)
        pixels = tokenizer.pixels(params, tokenizer.embed(params, codes))
        return {
            'codes': jnp.concatenate(codes, 1),
            'teacher': tokenizer.teacher(params, codes),
            'pixels': pixels,
        }

    return results(params, normal('image', (2, *cases.FLEXIBLE_SIDES, 3)))


def check_flexible(reference):
    ours = run_flexible()
    np.testing.assert_array_equal(ours.pop('codes'), reference.pop('codes'))
    assert not disagreements(ours, reference, TOLERANCE)


def test_flexible_golden():
    check_flexible(dict(golden()['flexible']))


@pytest.mark.parity
def test_flexible_equals_authors():
    pytest.importorskip('torch')
    if not os.environ.get('JAXGEN_FLEXVAR'):
        pytest.skip("JAXGEN_FLEXVAR names no checkout of the authors' code")
    check_flexible(cases.flexible(cases.flexible_tokenizer()))


def test_published_size():
    tokenizer = vqgan.build()
    assert tokenizer.latent == (16, 16, 32) and tokenizer.vocabulary == 4096
    assert sum(rows * columns for rows, columns in tokenizer.scales) == 680
    network = tokenizer.network
    params = jax.eval_shape(tokenizer.init, jax.random.key(0))['tokenizer']
    # The authors' own class counted in torch, at ch=160.
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 108_948_355
    assert vqgan.build(**family.from_config(family.to_config(network))) == tokenizer
    flexible = vqgan.build(**family.from_config({'_class_name': 'VQModel'}))
    assert flexible.latent == (16, 16, 8) and flexible.vocabulary == 16384
    assert vqgan.build(**family.from_config(family.to_config(flexible.network))) == flexible


def test_names_both_ways():
    tokenizer = cases.tokenizer(cases.TINY)
    table, names = family.layouts(tokenizer.network)['authors'], cases.published(tokenizer)
    params = to_jaxgen(table, names | {'quantize.ema_vocab_hit_SV': np.zeros((4, 64), np.float32)})
    again = to_published(table, params)
    assert set(again) == set(names)
    assert 'encoder.mid.attn_1.qkv.weight' in names and 'quantize.quant_resi.qresi_ls.3.bias' in names
    for name, array in again.items():
        np.testing.assert_array_equal(array, names[name])
    one_each = {name.replace('.qresi_ls.', '.'): array for name, array in names.items()}
    assert 'quantize.quant_resi.3.bias' in one_each
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(table, one_each, params), params)


@pytest.mark.parametrize('name', BOTTLENECKS)
def test_codes_and_what_they_stand_for(name):
    """The teacher's view is the feedback's, step by step, and the last sum is the embedding."""
    tokenizer = vqgan.build(8, BOTTLENECKS[name], **SMALL)

    @jax.jit
    def walk(images):
        params = tokenizer.init(jax.random.key(0))
        codes = tokenizer.codes(params, images)
        so_far, given = tokenizer.start(3), []
        for k, each in enumerate(codes):
            so_far, following = tokenizer.feedback(params, k, each, so_far)
            given.append(following)
        soft, _ = tokenizer.feedback(params, 0, tokenizer.vectors(params, codes[0]), tokenizer.start(3))
        hard, _ = tokenizer.feedback(params, 0, codes[0], tokenizer.start(3))
        whole = tokenizer.embed(params, codes), tokenizer.teacher(params, codes)
        return codes, so_far, given, (soft, hard), whole, tokenizer.decode(params, so_far)

    images = jnp.tanh(normal('images', (3, 8, 8, 3)))
    codes, so_far, given, (soft, hard), (embedded, teacher), pictures = walk(images)
    assert [each.shape for each in codes] == [(3, rows * columns) for rows, columns in tokenizer.scales]
    assert all(each.dtype == jnp.int32 for each in codes)
    assert all(0 <= each.min() and each.max() < tokenizer.vocabulary for each in codes)
    assert given.pop() is None
    assert so_far.shape == (3, *tokenizer.latent)
    assert teacher.shape == (3, sum(each.shape[1] for each in codes[1:]), tokenizer.latent[-1])
    if given:
        np.testing.assert_allclose(jnp.concatenate(given, 1), teacher, atol=1e-6)
    np.testing.assert_allclose(embedded, so_far, atol=1e-6)
    np.testing.assert_allclose(soft, hard, atol=1e-6)
    assert pictures.shape == images.shape and pictures.dtype == jnp.uint8


@pytest.mark.parametrize('name', ['residual', 'pyramid'])
def test_latents_pass_as_they_are_until_the_codebook_begins(name):
    scales = {'scales': (1, 2, 4), 'codes': 16, 'channels': 4, 'start': 2}
    made = residual.build(**scales) if name == 'residual' else vq.build(**scales)
    tokenizer = vqgan.build(8, made, **SMALL)
    images, keys = jnp.tanh(normal('images', (3, 8, 8, 3))), split_examples(jax.random.key(0), jnp.arange(3))

    @jax.jit
    def walk(params, state):
        pictures, found, state = tokenizer.forward(params, images, state, keys)
        latents = tokenizer.features(params, images)
        return pictures, found, state, latents, tokenizer.embed(params, tokenizer.codes(params, images))

    params, state = jax.jit(tokenizer.init)(jax.random.key(0)), tokenizer.state()
    for step in range(3):
        pictures, found, state, latents, embedded = walk(params, state)
        if name == 'pyramid':
            latents = latents / jnp.linalg.norm(latents, axis=-1, keepdims=True)
        np.testing.assert_allclose(found.maps[-1], latents if step < 2 else embedded, atol=1e-5)
        assert (found.loss > 0).all() == (step == 2) and (step == 2 or not found.loss.any())
    sides = [picture.shape[1] for picture in pictures]
    assert sides == ([8] if name == 'residual' else [2, 4, 8])


def test_another_shape_and_other_scales():
    tokenizer = vqgan.build(8, BOTTLENECKS['pyramid'], **SMALL).at((1, (1, 3), (2, 6)))
    params = jax.jit(tokenizer.init)(jax.random.key(0))
    codes = tokenizer.codes(params, normal('images', (1, 4, 12, 3)))
    assert [each.shape[1] for each in codes] == [1, 3, 12]
    assert tokenizer.teacher(params, codes).shape == (1, 15, 4)
    assert tokenizer.pixels(params, tokenizer.embed(params, codes)).shape == (1, 4, 12, 3)


def test_a_gaussian_has_latents_and_no_codes():
    tokenizer = vqgan.build(8, kl.build(4), **SMALL)
    params = jax.jit(tokenizer.init)(jax.random.key(0))
    keys = split_examples(jax.random.key(1), jnp.arange(2))
    latents = tokenizer.encode(params, {'image': jnp.zeros((2, 8, 8, 3), jnp.uint8)}, keys)
    assert latents.shape == (2, *tokenizer.latent) and (latents[0] != latents[1]).any()
    with pytest.raises(ValueError, match='no codes'):
        tokenizer.quantize(params, latents)


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        ({'bottleneck': residual.build(16, 4, (1, 2, 8))}, r'end with \(8, 8\), and the latents are 4 x 4'),
        ({'attention': (2,)}, 'levels are 0 to 1'),
        ({'bottleneck': 'vq'}, 'a section with the name'),
        ({'groups': 3}, 'does not divide'),
        ({'fold': 8}, 'does not divide the resolution'),
    ],
)
def test_what_does_not_fit_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        vqgan.build(8, **{'bottleneck': vq.build(16, 4), **SMALL, **settings})
