"""GIVT against the authors' code with the same random weights, live and stored; its orders and sizes."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import make_givt as cases
from golden.seeded import disagreements, relative_error, stored
from golden.var_cases import DROP, LABELS

from jaxgen.autoregressive import sampler
from jaxgen.autoregressive.orders import masked, raster
from jaxgen.autoregressive.vectors import mixture
from jaxgen.conditioning import labels
from jaxgen.conditioning.request import Request
from jaxgen.models import givt
from jaxgen.objectives import masked as masked_objective
from jaxgen.objectives import next_token
from jaxgen.recipe import Network
from jaxgen.tokenizers import vqgan
from jaxgen.tokenizers.bottlenecks import kl
from jaxgen.weights import givt as names
from jaxgen.weights.names import entries, to_jaxgen, to_published

TOLERANCE = 1e-4
CONDITION = {'label': LABELS, 'drop': DROP}
BOTH = pytest.mark.parametrize('case', list(cases.CASES))


@BOTH
def test_golden(case):
    every, prefix = stored('givt'), f'{case}/'
    reference = {name.removeprefix(prefix): every[name] for name in every.files if name.startswith(prefix)}
    network = givt.build(**cases.CASES[case])
    ours = cases.run(network, cases.parameters(network))
    assert len(reference) >= 20 and set(reference) <= set(ours)
    assert not disagreements(ours, reference, TOLERANCE)


@pytest.mark.parity
@BOTH
def test_mixtures_and_gradients_equal_authors(case):
    if not os.environ.get('JAXGEN_BIG_VISION'):
        pytest.skip("JAXGEN_BIG_VISION names no checkout of the authors' code")
    network = givt.build(**cases.CASES[case])
    params, table = cases.parameters(network), names.authors(network)
    model, weights = cases.authors(os.environ['JAXGEN_BIG_VISION'], network), to_published(table, params)
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(table, weights, params), params)
    assert not disagreements(cases.run(network, params), cases.run_authors(model, weights), TOLERANCE)


def applied(network, params, x, t):
    return jax.jit(lambda x, t: network.apply({'params': params}, x, t, CONDITION)[0])(x, t)


def test_no_token_sees_itself_or_a_later_one():
    network = givt.build(**cases.SETTINGS)
    params, x = cases.parameters(network), jnp.asarray(cases.tokens())
    whole = applied(network, params, x, None)
    for token in (0, 5, 10):
        moved = np.abs(applied(network, params, x.at[:, token].add(1.0), None) - whole).max((0, 2))
        assert (moved[: token + 1] == 0).all() and (moved[token + 1 :] > 1e-6).all()


def test_hidden_tokens_tell_nothing_and_seen_ones_all():
    network = givt.build(**cases.CASES['masked'])
    params, x, hidden = cases.parameters(network), jnp.asarray(cases.tokens()), cases.hidden()
    whole = applied(network, params, x, hidden)
    np.testing.assert_array_equal(applied(network, params, x + hidden[..., None], hidden), whole)
    moved = np.abs(applied(network, params, x + ~hidden[..., None], hidden) - whole)
    assert moved.max((1, 2)).min() > 1e-3


@pytest.mark.parametrize('scan', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_cache_changes_nothing(scan):
    network = givt.build(**cases.SETTINGS, scan=scan)
    params, x = cases.parameters(network), jnp.asarray(cases.tokens())

    @jax.jit
    def by_tokens(x):
        def step(memory, token):
            t, x_BC = token
            out, _, memory = network.apply({'params': params}, x_BC[:, None], t, CONDITION, memory=memory)
            return memory, out[:, 0]

        memory = network.cache(len(x))
        first, _, memory = network.apply({'params': params}, x[:, :0], 0, CONDITION, memory=memory)
        places = jnp.arange(x.shape[1] - 1), jnp.moveaxis(x, 1, 0)[:-1]
        rest = jax.lax.scan(step, memory, places)[1]
        return jnp.concatenate([first, jnp.moveaxis(rest, 0, 1)], axis=1)

    np.testing.assert_allclose(by_tokens(x), applied(network, params, x, None), atol=1e-5)


def test_bfloat16_and_dropout():
    network = givt.build(**cases.SETTINGS)
    params, x = cases.parameters(network), jnp.asarray(cases.tokens())
    whole = applied(network, params, x, None)
    half = applied(givt.build(**cases.SETTINGS, dtype='bfloat16', remat='named'), params, x, None)
    assert half.dtype == jnp.float32 and relative_error(half, whole) < 0.05
    leaving = givt.build(**cases.SETTINGS, dropout=0.5)
    per_layer = leaving.drops(jax.random.split(jax.random.key(0), 3))

    @jax.jit
    def dropped(per_layer):
        return leaving.apply({'params': params}, x, None, CONDITION, per_layer=per_layer)[0]

    assert network.drops(jax.random.split(jax.random.key(0), 3)) == {}
    assert np.abs(dropped(per_layer) - whole).max() > 0.1
    np.testing.assert_allclose(dropped({}), whole, atol=1e-5)


# The authors' own class counted.
@pytest.mark.parametrize(
    ('size', 'count'), [('base', 86_388_240), ('default', 304_013_840), ('large', 1_664_336_400)]
)
def test_published_names_and_sizes(size, count):
    network = givt.build(size=size, order='masked')
    params = jax.eval_shape(network.init, jax.random.key(0), *names.inputs(network))['params']
    depth, width, heads, ff = givt.SIZES[size]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    if size != 'base':
        return
    table = names.authors(network)
    shapes = {entry.name: entry.shape for entry in entries(table, params)}
    block, head = 'decoder/EncDecBlock', width // heads
    split = (width, depth, heads, head)
    assert shapes == {
        'EmbedLabels/embedding': (1004, width),
        'EmbedTargets/kernel': (16, width),
        'EmbedTargets/bias': (width,),
        'decoder/pos_emb': (1, 257, width),
        f'{block}/LayerNorm1/scale': (width, depth),
        f'{block}/LayerNorm3/scale': (width, depth),
        **{f'{block}/SelfAttn/{name}/kernel': split for name in ('query', 'key', 'value')},
        f'{block}/SelfAttn/out/kernel': (heads, depth, head, width),
        f'{block}/MLP/Dense_0/kernel': (width, depth, ff),
        f'{block}/MLP/Dense_0/bias': (ff, depth),
        f'{block}/MLP/Dense_1/kernel': (ff, depth, width),
        f'{block}/MLP/Dense_1/bias': (width, depth),
        'decoder/LayerNorm/scale': (width,),
        'decoder/LayerNorm/bias': (width,),
        'decoder/LogitsDense/kernel': (width, 528),
        'decoder/LogitsDense/bias': (528,),
    }


@pytest.fixture(scope='module')
def tokenizer():
    return vqgan.build(12, kl.build(4), widths=(8, 8, 8), blocks=1, groups=4, attention=())


def drawing(tokenizer, case, **order):
    network = givt.build(**cases.CASES[case] | {'latent': tokenizer.latent})
    params = {'model': cases.parameters(network), **tokenizer.init(jax.random.key(1))}
    built = (raster if case == 'causal' else masked).build(**order)
    made = sampler.build({'model': Network(network)}, tokenizer, built, guidance=1.5, temperature=0.9)
    cond, null = ({'label': LABELS, 'drop': np.full(3, drop)} for drop in (False, True))
    return made, params, Request(cond, null, jax.random.split(jax.random.key(2), 3))


def test_components_differ_from_the_beginning():
    """Alike ones would get the same gradients for ever."""
    network = givt.build(**cases.SETTINGS)
    params = jax.jit(network.init)(jax.random.key(0), *names.inputs(network))['params']
    found = mixture(applied(network, params, cases.tokens(), None), network.channels)
    assert 0.01 < np.ptp(found.means, axis=2).mean() < 1 and np.abs(found.deviations - 1).max() < 1


@pytest.mark.slow
def test_drawing_without_the_cache_is_the_same(tokenizer):
    made, params, request = drawing(tokenizer, 'causal')
    bare = drawing(tokenizer, 'causal', cache=False)[0]
    latents, same = (jax.jit(each.decode)(params, request, made.knobs())[0] for each in (made, bare))
    np.testing.assert_allclose(latents, same, atol=1e-4)


def test_raster_order_keeps_what_is_not_masked(tokenizer):
    made, params, request = drawing(tokenizer, 'causal')
    picture = np.ones((3, *tokenizer.latent), np.float32)
    mask = np.zeros((1, *tokenizer.latent[:2], 1), np.float32)
    mask[:, 1:] = 1
    forced = jax.jit(made.decode)(params, request.replace(init=picture, mask=mask), made.knobs())[0]
    assert (forced[:, 0] == 1).all() and (forced[:, 1:] != 1).all() and np.isfinite(forced).all()


def test_masked_order_takes_any_number_of_steps(tokenizer):
    made, params, request = drawing(tokenizer, 'masked')
    decode = jax.jit(made.decode)
    for steps in (1, 4, 9):
        latents, (tokens,), (turns,) = decode(params, request, made.knobs(steps=steps))
        assert np.isfinite(latents).all() and sorted(set(turns.ravel().tolist())) == list(range(1, steps + 1))
        np.testing.assert_array_equal(latents.reshape(3, 9, 4), tokens)
    assert decode._cache_size() == 1


@pytest.mark.parametrize('case', ['causal', pytest.param('masked', marks=pytest.mark.slow)])
def test_a_step_of_training_lowers_the_loss(tokenizer, case):
    network = Network(givt.build(**cases.CASES[case] | {'latent': tokenizer.latent}, dropout=0.1))
    room = next_token if case == 'causal' else masked_objective
    objective = room.build({'model': network}, labels.build(5), tokenizer)
    params = {'model': cases.parameters(network.module), **tokenizer.init(jax.random.key(1))}
    frozen = {'networks': {'tokenizer': params.pop('tokenizer')}}
    batch = {'image': np.uint8(100 + np.arange(3 * 12 * 12 * 3).reshape(3, 12, 12, 3) % 99), 'label': LABELS}
    keys = jax.random.split(jax.random.key(3), 3)

    @jax.jit
    def loss(params):
        total, weight, _, _ = objective.phases[0].loss(params, {}, frozen, batch, keys, 0)
        return total / weight

    before, gradient = jax.jit(jax.value_and_grad(loss))(params)
    after = loss(jax.tree.map(lambda leaf, slope: leaf - 1e-3 * slope, params, gradient))
    assert np.isfinite(before) and after < before


def test_less_than_is_published_is_never_hidden():
    keys = jax.random.split(jax.random.key(4), 500)
    for furthest, least in ((1.0, 0.0), (0.7, 0.449)):
        shares = masked_objective.hiding('cosine', 2.0, keys, 100, furthest).mean(1)
        assert least <= shares.min() < least + 0.02 and shares.max() > 0.98


def test_what_does_not_go_together_is_refused(tokenizer):
    networks = [Network(givt.build(**settings)) for settings in cases.CASES.values()]
    params, x = cases.parameters(networks[0].module), cases.tokens()
    with pytest.raises(ValueError, match=r'tokens of \(11, 4\) are given, and this network is of 12 of 4'):
        networks[0](params, x[:, 1:], None, CONDITION)
    for network, other in zip(networks, (masked_objective, next_token)):
        with pytest.raises(ValueError, match='GIVT is none'):
            other.build({'model': network}, labels.build(5), tokenizer)


def test_codes_are_refused():
    with pytest.raises(ValueError, match="has 16 codes, and model 'givt' is of vectors"):
        givt.build(codes=16)
