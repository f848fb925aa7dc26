"""T5's encoder against transformers with the same random weights, live and stored; its published names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import make_t5
from golden.seeded import disagreements, relative_error, stored, weights

from jaxgen.encoders import t5
from jaxgen.weights import t5 as family
from jaxgen.weights.names import to_jaxgen, to_published

TOLERANCE = 1e-4
IDS, MASK = make_t5.IDS, make_t5.MASK


def _table(network):
    return family.layouts(network)['transformers']


def _run(network, params, cotangent):
    """Features, and the gradients of all weights by their published names."""

    def objective(params):
        out = network.apply({'params': params}, IDS, MASK)
        return jnp.sum(out * cotangent), out

    by_params, out = jax.jit(jax.grad(objective, has_aux=True))(params)
    return {'out': np.asarray(out)} | to_published(_table(network), by_params)


def _ours(case):
    network = t5.build(**make_t5.CASES[case])
    published, params = make_t5.parameters(network)
    return network, published, params


@pytest.mark.parametrize('case', list(make_t5.CASES))
def test_golden(case):
    network, _, params = _ours(case)
    every = stored('t5')
    reference = {name.partition('/')[2]: every[name] for name in every.files if name.startswith(f'{case}/')}
    assert len(reference) > 15
    ours = _run(network, params, make_t5.cotangent(network.width))
    assert not disagreements(ours, reference, TOLERANCE)


@pytest.mark.parity
@pytest.mark.parametrize('case', list(make_t5.CASES))
def test_output_and_gradients_equal_transformers(case):
    pytest.importorskip('transformers')
    network, published, params = _ours(case)
    reference = make_t5.run_reference(make_t5.reference(network, published))
    ours = _run(network, params, make_t5.cotangent(network.width))
    assert set(ours) - {'out'} <= set(reference)
    assert not disagreements(ours, {name: reference[name] for name in ours}, TOLERANCE)


@pytest.mark.slow
@pytest.mark.parity
def test_full_width_equals_transformers():
    """Two layers of XXL; in bfloat16, too, as it runs on TPU."""
    torch = pytest.importorskip('torch')
    pytest.importorskip('transformers')
    vocabulary = make_t5.SIZES['vocabulary']
    network, half = (t5.build('xxl', vocabulary, depth=2, dtype=name) for name in ('float32', 'bfloat16'))
    published, params = make_t5.parameters(network)
    model = make_t5.reference(network, published)
    ids, mask = torch.from_numpy(IDS).long(), torch.from_numpy(MASK).long()
    with torch.no_grad():
        reference = model(ids, attention_mask=mask).last_hidden_state.numpy()
        del published  # the next line copies the weights
        theirs = model.bfloat16()(ids, attention_mask=mask).last_hidden_state.float().numpy()
    ours = (jax.jit(one.apply)({'params': params}, IDS, MASK) for one in (network, half))
    exact, low, low_theirs = (
        relative_error(np.asarray(out, np.float32)[MASK], reference[MASK]) for out in (*ours, theirs)
    )
    print(f'XXL width: float32 {exact:.1e}; bfloat16 {low:.1e}, that of transformers {low_theirs:.1e}')
    assert exact <= TOLERANCE and low <= low_theirs


def test_buckets_equal_transformers():
    expected, steps = stored('t5')['buckets'], make_t5.STEPS
    buckets = t5.relative_buckets(steps + 1, 32, 128)
    assert buckets[0].tolist() == expected[steps:].tolist()
    assert buckets[::-1, 0].tolist() == expected[: steps + 1].tolist()


def test_padding_changes_nothing():
    network, _, params = _ours('gated')
    run = jax.jit(lambda ids, mask: network.apply({'params': params}, ids, mask))
    longer = run(IDS, MASK)
    short = run(IDS[:, :16], MASK[:, :16])
    other = run(np.where(MASK, IDS, 5), MASK)
    np.testing.assert_allclose(short[1, :11], longer[1, :11], atol=1e-5)
    np.testing.assert_allclose(np.where(MASK[..., None], longer - other, 0), 0, atol=1e-6)
    assert np.abs(longer[0, :11] - run(IDS, MASK & (np.arange(24) < 11))[0, :11]).max() > 1e-2


def test_no_key_is_no_nan_and_an_id_beyond_the_vocabulary_is():
    network, _, params = _ours('gated')
    assert np.isfinite(network.apply({'params': params}, IDS, np.zeros_like(MASK))).all()
    assert np.isnan(network.apply({'params': params}, IDS + network.vocabulary, MASK)).all()


def test_bfloat16_stays_near_float32():
    network, _, params = _ours('gated')
    half = t5.build(**make_t5.CASES['gated'], dtype='bfloat16')
    exact = network.apply({'params': params}, IDS, MASK)
    kept = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    for tree in (params, kept):
        low = half.apply({'params': tree}, IDS, MASK)
        assert low.dtype == jnp.bfloat16
        assert 1e-4 < relative_error(low.astype(np.float32), exact) < 5e-2


@pytest.mark.parametrize(
    ('size', 'count'),
    # transformers' T5EncoderModel, counted in torch.
    [
        ('small', 35_332_800),
        ('base', 109_628_544),
        ('large', 341_231_104),
        ('xl', 1_223_527_424),
        ('xxl', 4_762_310_656),
    ],
)
def test_published_parameter_counts(size, count):
    params = jax.eval_shape(t5.build(size).init, jax.random.key(0), IDS, MASK)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_config_there_and_back():
    for network in (t5.build(), t5.build('small', dtype='float32', gated=False, epsilon=1e-5)):
        assert t5.build(**family.from_config(family.to_config(network))) == network
    published = {'d_model': 4096, 'd_ff': 10240, 'num_layers': 24, 'num_heads': 64, 'model_type': 't5'}
    published |= {'feed_forward_proj': 'gated-gelu', 'n_positions': 512, 'num_decoder_layers': 24}
    assert t5.build(**family.from_config(published)) == t5.build('xxl')
    for wrong in ({'model_type': 'umt5'}, {'feed_forward_proj': 'gated-silu'}, {'is_decoder': True}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            family.from_config(published | wrong)


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match='no size'):
        t5.build('huge')
    with pytest.raises(ValueError, match='buckets'):
        t5.build(buckets=6)


def test_the_token_table_goes_by_two_names_and_decoders_are_left_out():
    network, published, params = _ours('gated')
    more = {'decoder.block.1.layer.2.layer_norm.weight': np.ones(3), 'lm_head.weight': np.ones((2, 2))}
    own = dict(published)
    own['encoder.embed_tokens.weight'] = own.pop('shared.weight')
    both = published | own
    for given in (published | more, own, both):
        tree = to_jaxgen(_table(network), given, params)
        jax.tree.map(np.testing.assert_array_equal, tree, params)
    both['encoder.embed_tokens.weight'] = both['shared.weight'] + 1
    with pytest.raises(ValueError, match='differs'):
        to_jaxgen(_table(network), both, params)
    assert set(to_published(_table(network), params)) == set(published)


@pytest.mark.parity
@pytest.mark.parametrize('case', list(make_t5.CASES))
def test_whole_models_of_transformers_are_read_and_ours_by_from_pretrained(case, tmp_path):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    from safetensors.numpy import save_file

    network, published, params = _ours(case)
    config = transformers.T5Config(**family.to_config(network) | {'is_encoder_decoder': True})
    whole = transformers.T5ForConditionalGeneration(config).state_dict()
    seeded = weights({name: tuple(tensor.shape) for name, tensor in whole.items()})
    seeded['encoder.embed_tokens.weight'] = seeded['shared.weight']
    tree = to_jaxgen(_table(network), seeded, params)
    jax.tree.map(np.testing.assert_array_equal, tree, params)  # the same names have the same weights

    save_file(
        {name: np.ascontiguousarray(array) for name, array in to_published(_table(network), params).items()},
        tmp_path / 'model.safetensors',
        metadata={'format': 'pt'},
    )
    (tmp_path / 'config.json').write_text(json.dumps(family.to_config(network)))
    model, report = transformers.T5EncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report['missing_keys'] and not report['unexpected_keys']
    out = model(torch.from_numpy(IDS).long(), attention_mask=torch.from_numpy(MASK).long()).last_hidden_state
    assert relative_error(network.apply({'params': params}, IDS, MASK), out.detach().numpy()) <= TOLERANCE
