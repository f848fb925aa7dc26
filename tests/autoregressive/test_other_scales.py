"""A network that takes any scales: it draws by others, at other sizes, and is trained by several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.seeded import normal

from jaxgen.autoregressive import sampler
from jaxgen.autoregressive.orders import next_scale
from jaxgen.conditioning import labels
from jaxgen.conditioning.request import Request
from jaxgen.models import flexvar, var
from jaxgen.objectives import next_scale as objective
from jaxgen.recipe import Network
from jaxgen.tokenizers import vqgan
from jaxgen.tokenizers.bottlenecks import vq

SIZES = {'codes': 16, 'channels': 4, 'classes': 3, 'depth': 2, 'hidden': 32, 'heads': 2}
COND = {'label': jnp.array([0, 2]), 'drop': jnp.zeros(2, bool)}


@pytest.fixture(scope='module')
def parts():
    tokenizer = vqgan.build(8, vq.build(16, 4, (1, 2, 4)), widths=(8, 16), blocks=1, groups=4, attention=())
    network = flexvar.build(scales=tokenizer.scales, side=8, gate=0.5, drop_path=0.0, **SIZES)
    params = jax.jit(network.init)(jax.random.key(0), *network.blank(None, None, COND))['params']
    return tokenizer, Network(network), {'model': params, **tokenizer.init(jax.random.key(1))}


def request():
    null = {**COND, 'drop': jnp.ones(2, bool)}
    return Request(COND, null, jax.random.split(jax.random.key(2), 2))


def test_scales_are_stretched():
    square = ((1, 1), (2, 2), (4, 4), (8, 8))
    assert sampler.stretched(square, (16, 16)) == ((1, 1), (4, 4), (8, 8), (16, 16))
    assert sampler.stretched(square, (8, 12)) == ((1, 1), (2, 3), (4, 6), (8, 12))
    assert sampler.stretched(square, (2, 2)) == ((1, 1), (2, 2))
    assert sampler.stretched(((8, 8),), (8, 12)) == ((8, 12),)


@pytest.mark.parametrize('way', ['another size', 'other scales'])
def test_it_draws_by_other_scales(parts, way):
    tokenizer, network, params = parts
    given = {} if way == 'another size' else {'schedule': (1, 3, 4)}
    made = sampler.build({'model': network}, tokenizer, next_scale.build({}), **given)
    shape = (6, 4, 4) if way == 'another size' else (4, 4, 4)
    expected = ((1, 1), (3, 2), (6, 4)) if way == 'another size' else ((1, 1), (3, 3), (4, 4))
    made = made.at(shape)
    assert made.tokenizer.scales == expected
    latents, codes, logits = jax.jit(made.decode)(params, request(), made.knobs(guidance=2))
    assert latents.shape == (2, *shape) and np.isfinite(latents).all()
    assert [part.shape for part in codes] == [(2, rows * columns) for rows, columns in expected]
    bare = sampler.build({'model': network}, tokenizer, next_scale.build({}, cache=False), **given).at(shape)
    whole = jax.jit(bare.decode)(params, request(), made.knobs(guidance=2))[2]
    np.testing.assert_allclose(jnp.concatenate(logits, 1), jnp.concatenate(whole, 1), atol=1e-5)


def test_every_step_draws_its_scales(parts):
    tokenizer, network, params = parts
    several = objective.build(
        {'model': network}, labels.build(3), tokenizer, drop=0.0, schedules=((1, 4), (1, 3, 4))
    )
    batch = {'image': np.uint8(40 * normal('picture', (2, 8, 8, 3)) + 127), 'label': COND['label']}
    frozen = {'networks': params}

    @jax.jit
    def loss(keys, step):
        own = {'model': params['model']}
        total, _, _, metrics = several.phases[0].loss(own, {}, frozen, batch, keys, step)
        return total, metrics

    keys = [jax.random.split(jax.random.key(seed), 2) for seed in range(12)]
    totals, metrics = zip(*(loss(each, 0) for each in keys))
    assert len({round(float(total), 4) for total in totals}) == 3
    assert [loss(each, 7)[0] for each in keys] == list(totals)  # by the keys, in which the step is already
    assert set(metrics[0]) == {'accuracy', 'error_last'}
    alone = []
    for scales in ((1, 2, 4), (1, 4), (1, 3, 4)):
        other = tokenizer.at(scales)
        one = Network(network.module.at(other.scales))
        made = objective.build({'model': one}, labels.build(3), other, drop=0.0)
        own = {'model': params['model']}
        alone.append(float(made.phases[0].loss(own, {}, frozen, batch, keys[0], 0)[0]))
    assert {round(float(total), 3) for total in totals} == {round(total, 3) for total in alone}


def test_what_takes_no_other_scales_is_refused(parts):
    tokenizer = parts[0]
    networks = {'model': Network(var.build(scales=tokenizer.scales, **SIZES))}
    with pytest.raises(ValueError, match='sampler.schedule is for networks that take any'):
        sampler.build(networks, tokenizer, next_scale.build({}), schedule=(1, 4))
    with pytest.raises(ValueError, match='objective.schedules is for networks that take any'):
        objective.build(networks, labels.build(3), tokenizer, schedules=((1, 4),))


@pytest.mark.parametrize(
    ('scales', 'said'),
    [
        ((1, 3, 12), r'must end with \(4, 4\)'),
        ((1, 2), r'must end with \(4, 4\)'),
        ((2, 3, 4), r'must begin with \(1, 1\)'),
        ((), r'must begin with \(1, 1\)'),
        ((1, 3, 2, 4), r'\(2, 2\) is none after \(3, 3\)'),
        ((1, (2, 3), (3, 2), 4), r'\(3, 2\) is none after \(2, 3\)'),
        ((1, 4, 4), r'\(4, 4\) is none after \(4, 4\)'),
    ],
)
def test_scales_that_lead_nowhere_are_refused(parts, scales, said):
    tokenizer, network, _ = parts
    with pytest.raises(ValueError, match='a row of objective.schedules is .*' + said):
        objective.build({'model': network}, labels.build(3), tokenizer, schedules=((1, 4), scales))
    if scales:  # the sampler has none of its own then
        with pytest.raises(ValueError, match='sampler.schedule is .*' + said):
            sampler.build({'model': network}, tokenizer, next_scale.build({}), schedule=scales)


def test_scales_finer_than_the_table_of_places_are_refused(parts):
    tokenizer, network, _ = parts
    made = sampler.build({'model': network}, tokenizer, next_scale.build({}))
    with pytest.raises(ValueError, match='up to 4 x 9 tokens are finer than the table of places'):
        made.at((4, 9, 4))
    with pytest.raises(ValueError, match='train with model.side=4'):
        flexvar.build(scales=((1, 1), (4, 4)), side=3, **SIZES)


def test_a_refiner_goes_by_the_same_scales(parts):
    tokenizer, network, params = parts
    small = flexvar.build(scales=tokenizer.scales, side=8, gate=0.5, drop_path=0.0, **SIZES | {'depth': 1})
    own = jax.jit(small.init)(jax.random.key(3), *small.blank(None, None, COND))['params']
    networks, params = {'model': network, 'small': Network(small)}, {**params, 'small': own}
    order = next_scale.build(networks, refiner='small', drafted=1)
    made = sampler.build(networks, tokenizer, order).at((6, 4, 4))
    latents, codes, _ = jax.jit(made.decode)(params, request(), made.knobs(top_k=1))
    assert latents.shape == (2, 6, 4, 4) and [part.shape[1] for part in codes] == [1, 6, 24]
    plain = sampler.build(networks, tokenizer, next_scale.build({})).at((6, 4, 4))
    drafted = jax.jit(plain.decode)(params, request(), made.knobs(top_k=1))[1]
    np.testing.assert_array_equal(codes[0], drafted[0])
    assert (codes[2] != drafted[2]).any()
    with pytest.raises(ValueError, match='drafted is 1 of 1 scales'):
        sampler.build(networks, tokenizer, order).at((1, 1, 4))


@pytest.mark.parametrize('other', [{'codes': 8}, {'scales': ((1, 1), (4, 4))}])
def test_a_refiner_of_other_codes_is_refused(parts, other):
    tokenizer, network, _ = parts
    small = flexvar.build(**{'scales': tokenizer.scales, **SIZES, **other})
    order = next_scale.build({'small': Network(small)}, refiner='small', drafted=1)
    with pytest.raises(ValueError, match="refiner 'small' is of the scales .* leave both out of its module"):
        sampler.build({'model': network}, tokenizer, order)


def test_a_refiner_that_goes_by_its_own_scales_alone_is_refused(parts):
    tokenizer, network, _ = parts
    networks = {'model': network, 'small': Network(var.build(scales=tokenizer.scales, **SIZES))}
    order = next_scale.build(networks, refiner='small', drafted=1)
    made = sampler.build(networks, tokenizer, order)
    with pytest.raises(ValueError, match="refiner 'small' goes by scales of its own alone"):
        made.at((6, 4, 4))
    with pytest.raises(ValueError, match="refiner 'small' goes by scales of its own alone"):
        sampler.build(networks, tokenizer, order, schedule=(1, 4))
