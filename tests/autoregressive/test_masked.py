"""Decoding by what is surest: schedules, a plain walk, the authors' Halton sampler, forced tokens, knobs."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import make_maskgit as cases
from golden.seeded import normal, stored

from jaxgen.autoregressive import alphabet, sampler, schedules
from jaxgen.autoregressive.orders import masked
from jaxgen.conditioning.request import Request
from jaxgen.layers import digits
from jaxgen.models import llamagen
from jaxgen.recipe import Network

CASE_SCALES = ((cases.SIDE, cases.SIDE),)
SCALES, CODES, BATCH = ((1, 1), (2, 3), (4, 4)), 9, 3
TOKENS = 23


@pytest.mark.parametrize(
    ('name', 'exponent', 'expected'),
    [
        ('cosine', 1, [1, 0.92388, 0.707107, 0.382683, 0]),
        ('arccos', 1, [1, 0.839139, 0.666667, 0.460106, 0]),
        ('power', 1, [1, 0.75, 0.5, 0.25, 0]),
        ('power', 2, [1, 0.9375, 0.75, 0.4375, 0]),
        ('power', 0.5, [1, 0.5, 0.292893, 0.133975, 0]),
        ('logarithm', 1, [1, 0.25, 0.125, 0.05188, 0]),
        ('exponential', 1, [0.996094, 0.984375, 0.9375, 0.75, 0]),
    ],
)
def test_schedules(name, exponent, expected):
    share = schedules.hidden(name, np.linspace(0, 1, 5), 256, exponent)
    np.testing.assert_allclose(share, expected, atol=1e-5)


class Told:
    """A network whose logits are a few sums over the tokens that are seen, and of the condition."""

    def __init__(self, codes, tokens, groups=1):
        self.module = types.SimpleNamespace(groups=groups, causal=False)
        self.own, self.seen = normal('own', (tokens, codes)), normal('seen', (codes, codes))

    def __call__(self, params, x, hidden, cond):
        seen = jnp.where(hidden[..., None], 0, jnp.asarray(self.seen)[x]).sum(1, keepdims=True)
        own = (1 - 2 * cond['drop'])[:, None, None] * self.own * cond['label'][:, None, None]
        return own + seen, {}, None


def tokenizer(scales=SCALES, codes=CODES):
    ends = np.cumsum([rows * columns for rows, columns in scales])
    return types.SimpleNamespace(
        scales=scales,
        vocabulary=codes,
        latent=(*scales[-1], 1),
        provides={'codes': codes},
        quantize=lambda params, latents: jnp.split(latents, ends[:-1], axis=1),
        embed=lambda params, codes: jnp.concatenate(codes, axis=1),
    )


def built(network=None, given=None, **order):
    network = network or Told(CODES, TOKENS)
    return sampler.build({'model': network}, given or tokenizer(), masked.build(**order))


def request(keys=BATCH, **fields):
    label = jnp.arange(1, keys + 1)
    cond, null = ({'label': label, 'drop': jnp.full(keys, drop)} for drop in (False, True))
    return Request(cond, null, jax.random.split(jax.random.key(3), keys), **fields)


@pytest.fixture(scope='module')
def decode():
    """One compiled program of the ordinary order, for all knobs and requests of a shape."""
    made = built()
    return made, jax.jit(lambda request, knobs: made.decode({'model': {}}, request, knobs))


def walked(network, given, steps, guidance, ramp):
    """Tokens and turns of a plain walk without chance, one image at a time."""
    tokens, turns = np.zeros((2, BATCH, TOKENS), int)
    for image in range(BATCH):
        hidden = np.ones(TOKENS, bool)
        for step in range(steps):
            cond, null = (
                {name: value[image : image + 1] for name, value in each.items()}
                for each in (given.cond, given.null)
            )
            both = [
                np.asarray(network({}, tokens[image][None], hidden[None], each)[0][0])
                for each in (cond, null)
            ]
            scale = 1 + (guidance - 1) * (step / (steps - 1)) ** ramp
            logits = both[1] + scale * (both[0] - both[1])
            chances = np.exp(logits - logits.max(-1, keepdims=True))
            chances /= chances.sum(-1, keepdims=True)
            left = int(TOKENS * np.cos(np.pi / 2 * (step + 1) / steps))
            left = 0 if step + 1 == steps else max(1, min(hidden.sum() - 1, left))
            order = sorted(np.flatnonzero(hidden), key=lambda place: chances[place].max())
            for place in order[left:]:
                tokens[image, place], turns[image, place] = chances[place].argmax(), step + 1
                hidden[place] = False
    return tokens, turns


@pytest.mark.parametrize(('steps', 'guidance', 'ramp'), [(4, 1.0, 1.0), (7, 2.5, 0.5)])
def test_a_plain_walk_goes_the_same_way(decode, steps, guidance, ramp):
    made, draw = decode
    knobs = made.knobs(steps=steps, guidance=guidance, ramp=ramp, noise=0, top_k=1)
    _, (tokens,), (turns,) = draw(request(), knobs)
    expected, order = walked(made.network, request(), steps, guidance, ramp)
    np.testing.assert_array_equal(turns, order)
    np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize('steps', [1, 2, 8, 40])
def test_as_many_are_hidden_as_the_schedule_says(decode, steps):
    made, draw = decode
    turns = np.asarray(draw(request(), made.knobs(steps=steps))[2][0])
    hidden = [int((turns > step).sum(1)[0]) for step in range(steps + 1)]
    assert (np.sort(turns, 1) == np.sort(turns, 1)[:1]).all()
    expected = [TOKENS]
    for step in range(1, steps):
        count = int(np.floor(np.float32(TOKENS * np.cos(np.pi / 2 * step / steps))))
        expected.append(max(1, min(expected[-1] - 1, count)))
    assert hidden == [*expected, 0]


def test_steps_and_settings_compile_nothing_anew(decode):
    made, draw = decode
    draw(request(), made.knobs())
    before = draw._cache_size()
    for knobs in ({'steps': 3}, {'noise': 0, 'cooling': 0.5}, {'guidance': 4, 'ramp': 0, 'top_p': 0.5}):
        draw(request(), made.knobs(**knobs))
    assert draw._cache_size() == before


def test_an_image_is_the_same_in_any_batch(decode):
    made, draw = decode
    whole = draw(request(), made.knobs(guidance=2))[1][0]
    alone = jax.tree.map(lambda a: a[1:2] if np.ndim(a) else a, request())
    np.testing.assert_array_equal(whole[1:2], draw(alone, made.knobs(guidance=2))[1][0])
    assert (whole[0] != whole[1]).any()


def known():
    return jnp.asarray(np.random.RandomState(0).randint(0, CODES, (BATCH, TOKENS)), jnp.int32)


def test_what_a_mask_keeps_stays_and_all_else_is_drawn(decode):
    made, draw = decode
    mask = np.zeros((1, 4, 4, 1), np.float32)
    mask[:, 1:3, :3] = 1
    latents, (tokens,), (turns,) = draw(request(init=known(), mask=mask), made.knobs(steps=4))
    kept = np.asarray(turns[0] == 0)
    assert kept[0] and (kept[7:] == (mask.ravel() == 0)).all() and 0 < kept[1:7].sum() < 6
    np.testing.assert_array_equal(np.asarray(tokens)[:, kept], np.asarray(known())[:, kept])
    np.testing.assert_array_equal(latents, tokens)
    assert (turns[:, ~kept] > 0).all()
    nothing = draw(request(init=known(), mask=np.zeros_like(mask)), made.knobs(steps=4))
    np.testing.assert_array_equal(nothing[1][0], known())


def test_a_share_of_the_schedule_hides_as_many_as_are_left_there(decode):
    made, draw = decode
    for start, hidden in ((1.0, 23), (0.5, 17), (0.2, 8), (0.0, 0)):
        turns = np.asarray(draw(request(init=known(), start=start), made.knobs())[2][0])
        assert ((turns > 0).sum(1) == hidden).all()
        if 0 < hidden < TOKENS:
            assert ((turns[0] > 0) != (turns[1] > 0)).any()


def test_halton_draws_as_the_authors_do():
    every, made = stored('maskgit'), cases.network('maskgit')
    for side in cases.HALTON:
        order = np.argsort(masked.halton(((side, side),), side**2))
        np.testing.assert_array_equal(order, every[f'order/{side}'])
    given = tokenizer(CASE_SCALES, cases.CODES)
    draw = built(Network(made), given, surest='halton', schedule='arccos', ramp=0.0, steps=cases.STEPS)
    label = jnp.asarray(cases.LABELS)
    cond, null = ({'label': label, 'drop': jnp.full(len(label), drop)} for drop in (False, True))
    asked = Request(cond, null, jax.random.split(jax.random.key(0), len(label)))
    knobs = draw.knobs(guidance=cases.GUIDANCE, top_k=1)
    params = {'model': cases.parameters('maskgit')}
    _, (tokens,), (turns,) = jax.jit(draw.decode)(params, asked, knobs)
    np.testing.assert_array_equal(turns, every['drawn/turns'])
    np.testing.assert_array_equal(tokens, every['drawn/codes'])


@pytest.mark.parametrize(
    ('growth', 'ramp', 'expected'),
    [
        ('power', 0.0, [4, 4, 4, 4, 4]),
        ('power', 1.0, [1, 1.75, 2.5, 3.25, 4]),
        ('power', 2.0, [1, 1.1875, 1.75, 2.6875, 4]),
        # As MaskBit's, which does not reach the whole of it.
        ('cosine', 1.0, [1 + 3 * (1 - np.cos(np.pi * turn / 5)) / 2 for turn in range(5)]),
        ('cosine', 3.0, [1 + 3 * (1 - np.cos(np.pi * (turn / 5) ** 3)) / 2 for turn in range(5)]),
    ],
)
def test_guidance_grows_and_temperature_falls(growth, ramp, expected):
    made = built(growth=growth, ramp=ramp, cooling=0.5)
    knobs = made.knobs(guidance=4, steps=5, temperature=2)
    turns = [made.order.settings(knobs, jnp.int32(turn)) for turn in range(5)]
    np.testing.assert_allclose([each['guidance'] for each in turns], expected, rtol=1e-5)
    np.testing.assert_allclose([each['temperature'] for each in turns], np.linspace(2, 1, 5), rtol=1e-5)


def test_a_halton_sequence_goes_through_coarse_scales_first():
    places = masked.halton(SCALES, 2 * TOKENS)
    assert sorted(places) == list(range(2 * TOKENS))
    assert places[:2].tolist() == [0, 1] and places[2:14].max() == 13 and places[14:].min() == 14
    turns = np.asarray(
        built(surest='halton').decode({'model': {}}, request(), built(surest='halton').knobs())[2][0]
    )
    assert (turns[0] == turns[1]).all() and (
        np.diff(turns[0][np.argsort(masked.halton(SCALES, TOKENS))]) >= 0
    ).all()


def test_a_code_of_a_large_vocabulary_is_several_tokens():
    large, groups = 4**3, 3
    codes = jnp.asarray(np.random.RandomState(1).randint(0, large, (2, TOKENS)), jnp.int32)
    assert digits.base(large, groups) == 4 and digits.base(8**4, 2) == 64 and digits.base(2**18, 2) == 512
    split = digits.split(codes, large, groups)
    assert split.shape == (2, 3 * TOKENS) and split.max() < 4
    np.testing.assert_array_equal(digits.joined(split, large, groups), codes)
    assert (split[0, :3] == jnp.array([codes[0, 0] % 4, codes[0, 0] // 4 % 4, codes[0, 0] // 16])).all()
    with pytest.raises(ValueError, match='1,024 codes are no 3 equal groups'):
        digits.base(1024, 3)
    given = tokenizer(codes=large)
    made = built(Told(4, 3 * TOKENS, groups), given, steps=4)
    latents, (tokens,), _ = made.decode(
        {'model': {}}, request(init=jnp.tile(codes[:1], (BATCH, 1))), made.knobs()
    )
    assert tokens.shape == (BATCH, 3 * TOKENS) and latents.shape == (BATCH, TOKENS)
    letters = alphabet.of(given, groups)
    np.testing.assert_array_equal(letters.tokens({}, latents), tokens)
    held = made.held(5)
    assert [leaf.shape for leaf in jax.tree.leaves(held)] == [(5, 3 * TOKENS)] * 2


@pytest.mark.parametrize(
    ('knobs', 'said'),
    [
        ({'steps': 0}, 'steps is 0'),
        ({'steps': 1.5}, 'steps is 1.5'),
        ({'noise': -1}, 'noise is -1'),
        ({'cooling': 0}, 'cooling is 0'),
        ({'exponent': 2}, "no knob 'exponent'"),
    ],
)
def test_knobs_without_sense_are_refused(knobs, said):
    with pytest.raises(ValueError, match=said):
        built().knobs(**knobs)
    assert built(schedule='power').knobs(exponent=3)['exponent'] == 3


def test_a_network_that_tokens_are_not_hidden_from_is_refused():
    causal = Network(llamagen.build(scales=SCALES, codes=CODES, depth=1, hidden=16, heads=2))
    with pytest.raises(ValueError, match="order 'masked' is of networks .* and model LlamaGen is none"):
        built(causal)
    with pytest.raises(ValueError, match='is of codes, and the tokenizer has none'):
        built(given=types.SimpleNamespace(latent=(4, 4, 1)), network=Network(cases.network('maskgit')))
