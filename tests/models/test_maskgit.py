"""MaskGIT and MaskBit against their authors' code with the same random weights, live and stored; sizes."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import make_maskgit as cases
from golden.seeded import disagreements, relative_error, stored

from jaxgen.models import maskbit, maskgit
from jaxgen.weights import maskgit as names
from jaxgen.weights.names import to_jaxgen, to_published

TOLERANCE = 1e-4
CASES = pytest.mark.parametrize('case', list(cases.CASES))


@CASES
def test_golden(case):
    every, prefix = stored('maskgit'), f'{case}/'
    reference = {name.removeprefix(prefix): every[name] for name in every.files if name.startswith(prefix)}
    ours = cases.run(case, cases.parameters(case))
    assert len(reference) >= 20 and set(reference) <= set(ours)
    assert not disagreements(ours, reference, TOLERANCE)


@pytest.mark.parity
@CASES
def test_logits_and_gradients_equal_authors(case):
    pytest.importorskip('torch')
    variable = 'JAXGEN_MASKGIT' if case == 'maskgit' else 'JAXGEN_MASKBIT'
    if not os.environ.get(variable):
        pytest.skip(f"{variable} names no checkout of the authors' code")
    params = cases.parameters(case)
    model = cases.authors(case, os.environ[variable], to_published(cases.table(case), params))
    published = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(cases.table(case), published, params), params)
    reference = cases.run_authors(case, model)
    ours = cases.run(case, params)
    assert not disagreements(ours, {name: reference[name] for name in ours}, TOLERANCE)


@CASES
def test_what_is_hidden_is_not_seen_and_all_else_is(case):
    network, params = cases.network(case), cases.parameters(case)
    x, hidden = cases.tokens(case)
    condition = {'label': cases.LABELS, 'drop': cases.DROP}

    @jax.jit
    def logits(x):
        return network.apply({'params': params}, x, hidden, condition)[0]

    other = (x + 1) % network.vocabulary
    np.testing.assert_array_equal(logits(np.where(hidden, other, x)), logits(x))
    token = int(np.flatnonzero(~hidden[0])[-1])
    moved = np.abs(logits(np.where(np.arange(x.shape[1]) == token, other, x)) - logits(x))
    assert moved[0].max(-1).min() > 1e-6


@CASES
def test_dropout_is_for_training_alone_and_each_images_own(case):
    settings = cases.CASES[case] | {'dropout': 0.3}
    network = (maskgit if case == 'maskgit' else maskbit).build(**settings)
    params, condition = cases.parameters(case), {'label': cases.LABELS, 'drop': cases.DROP}
    keys = jax.random.split(jax.random.key(0), len(cases.LABELS))

    @jax.jit
    def logits(per_layer, rows=slice(None)):
        given = jax.tree.map(lambda a: a[rows], (*cases.tokens(case), condition))
        return network.apply({'params': params}, *given, per_layer=per_layer)[0]

    whole = logits(network.drops(keys))
    assert np.abs(whole - logits({})).max() > 1e-3
    np.testing.assert_allclose(logits({}), stored('maskgit')[f'{case}/logits'], rtol=1e-4, atol=1e-4)
    same = jnp.stack([keys[0]] * 3)
    assert np.abs(logits(network.drops(same))[1] - whole[1]).max() > 1e-3
    np.testing.assert_allclose(logits(network.drops(same))[0], whole[0], atol=1e-5)
    assert cases.network(case).drops(keys) == {}


def test_bfloat16_stays_near_float32():
    network = maskgit.build(**cases.CASES['maskgit'], dtype='bfloat16', remat='named')
    params, condition = cases.parameters('maskgit'), {'label': cases.LABELS, 'drop': cases.DROP}
    logits = jax.jit(lambda x, hidden: network.apply({'params': params}, x, hidden, condition)[0])
    found = logits(*cases.tokens('maskgit'))
    assert found.dtype == jnp.float32
    assert relative_error(np.asarray(found), stored('maskgit')['maskgit/logits']) < 0.05


@pytest.mark.parametrize(
    ('network', 'count'),
    # The authors' own classes counted in torch.
    [
        (maskgit.build(size='tiny'), 23_031_425),
        (maskgit.build(size='small'), 69_344_769),
        (maskgit.build(size='base'), 142_224_641),
        (maskgit.build(size='large', scales=((24, 24),)), 479_984_641),
        (maskgit.build(size='xlarge', scales=((24, 24),)), 692_487_041),
        (maskbit.build(codes=2**10), 304_728_128),
        (maskbit.build(codes=2**18), 305_720_320),
        (maskbit.build(codes=1024, groups=1, bits=False, hidden=768, heads=8), 172_718_080),
    ],
    ids=lambda value: f'{value:,}' if isinstance(value, int) else '',
)
def test_published_parameter_counts(network, count):
    params = jax.eval_shape(network.init, jax.random.key(0), *names.inputs(network))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="no size 'huge'"):
        maskgit.build(size='huge')
    with pytest.raises(ValueError, match='of 1,296 codes in 2 groups each is one of 36'):
        maskbit.build(codes=1296, groups=2)
    network, params = cases.network('maskgit'), cases.parameters('maskgit')
    x, hidden = cases.tokens('maskgit')
    with pytest.raises(ValueError, match='15 tokens are given, and this network is of 16 codes of 1'):
        network.apply(
            {'params': params}, x[:, 1:], hidden[:, 1:], {'label': cases.LABELS, 'drop': cases.DROP}
        )
