"""Captions through a frozen T5: ids cut and padded, features computed now or before, the empty caption."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import make_t5
from golden.seeded import relative_error

from jaxgen.conditioning import t5
from jaxgen.layers.attention import CrossAttention

ENCODER = make_t5.SIZES | {'vocabulary': 384}
CAPTIONS = ('A red circle', 'two <b>large</b> squares, on a navy background', '')
EXAMPLES = [{'caption': caption} for caption in CAPTIONS]
DROP = np.array([False, True, False])


def _conditioner(length=16, **settings):
    return t5.build(length=length, **ENCODER, **settings)


@pytest.fixture(scope='module')
def params():
    conditioner = _conditioner()
    return {'text': make_t5.parameters(conditioner.text)[1]}


def _features(conditioner, params, examples=EXAMPLES):
    """What a cache holds of each example: the features of its real tokens."""
    text, mask = jax.jit(conditioner.features)(params, conditioner.arrays(examples))
    return [np.asarray(one)[real] for one, real in zip(text, np.asarray(mask))]


def _embed(conditioner, params, examples=EXAMPLES, drop=DROP):
    return jax.jit(conditioner.embed)(params, conditioner.arrays(examples), drop, None)


def test_ids_are_padded_and_cut_with_their_end_kept():
    arrays = _conditioner().arrays(EXAMPLES)
    assert arrays['text_ids'].dtype == np.int32 and arrays['text_mask'].dtype == bool
    assert arrays['text_mask'].sum(1).tolist() == [13, 16, 1]
    assert arrays['text_ids'][0].tolist() == [*(byte + 3 for byte in b'a red circle'), 1, 0, 0, 0]
    assert bytes(arrays['text_ids'][1, :-1].astype(np.uint8) - 3) == b'two large squar'
    assert arrays['text_ids'][1, -1] == 1
    raw = _conditioner(clean=False).arrays([{'caption': '  <B>x '}])['text_ids'][0]
    assert bytes(raw[:4].astype(np.uint8) - 3) == b'<b>x'


def test_a_pad_token_in_a_caption_is_read():
    arrays = _conditioner(clean=False).arrays([{'caption': 'a<pad>b'}])
    assert arrays['text_ids'][0, :5].tolist() == [100, 0, 101, 1, 0] and arrays['text_mask'].sum() == 4


def test_a_long_prompt_is_cut_and_said_so(caplog):
    conditioner = _conditioner()
    with caplog.at_level(logging.WARNING, 'jaxgen'):
        assert conditioner.example('a red circle') == {'caption': 'a red circle'}
        assert not caplog.records
        assert conditioner.example('two large squares')['caption'] == 'two large squares'
    assert '18 tokens' in caplog.text and '16' in caplog.text


def test_one_key_for_captions_with_the_same_features():
    conditioner = _conditioner()
    assert conditioner.cache_key('A  red circle ') == conditioner.cache_key('a red circle')
    assert conditioner.cache_key('two large square') == conditioner.cache_key('two large squarish things')
    assert conditioner.cache_key('a blue circle') != conditioner.cache_key('a red circle')
    assert _conditioner(12).cache_key('two large square') != conditioner.cache_key('two large square')


def test_features_given_are_those_computed(params):
    conditioner = _conditioner()
    given = [
        example | {'text': one} for example, one in zip(EXAMPLES, _features(conditioner, params), strict=True)
    ]
    now = _embed(conditioner, params)
    before = conditioner.embed({}, conditioner.arrays(given), DROP, None)
    assert now['text'].shape == before['text'].shape == (3, 16, ENCODER['width'])
    np.testing.assert_array_equal(now['text_mask'], before['text_mask'])
    np.testing.assert_array_equal(now['drop'], before['drop'])
    mask = now['text_mask']
    np.testing.assert_allclose(now['text'][mask], before['text'][mask], atol=1e-6)
    assert np.abs(now['text'][~mask]).max() > 0.1 and not np.any(before['text'][~mask])

    # So what reads them under their mask sees no difference.
    attention, x = CrossAttention(heads=2), np.ones((3, 4, 8), np.float32)
    weights = jax.jit(attention.init)(jax.random.key(0), x, now['text'], mask)
    read = jax.jit(lambda text: attention.apply(weights, x, text, mask))
    np.testing.assert_allclose(read(now['text']), read(before['text']), atol=1e-5)


@pytest.mark.parametrize('cached', [False, True])
def test_the_empty_caption_stands_for_none(cached, params):
    conditioner = _conditioner(empty_null=True)
    assert conditioner.nothing == {'caption': ''} and _conditioner().nothing is None
    examples = EXAMPLES
    if cached:
        computed = _features(conditioner, params)
        examples = [example | {'text': one, 'null': computed[2]} for example, one in zip(EXAMPLES, computed)]
    cond = _embed(conditioner, {} if cached else params, examples)
    text, mask = np.asarray(cond['text']), np.asarray(cond['text_mask'])
    assert mask.sum(1).tolist() == [13, 1, 1] and not np.any(cond['drop'])
    np.testing.assert_allclose(text[1, :1], text[2, :1], atol=1e-6)
    kept = _embed(_conditioner(), params)
    np.testing.assert_allclose(text[0][mask[0]], kept['text'][0][mask[0]], atol=1e-6)
    assert kept['drop'].tolist() == DROP.tolist()


def test_without_the_empty_captions_features_none_may_be_left_out(params):
    conditioner = _conditioner(empty_null=True)
    given = [{'caption': '', 'text': one} for one in _features(conditioner, params)]
    text = np.asarray(_embed(conditioner, {}, given)['text'])
    assert np.isnan(text[1]).all() and np.isfinite(text[[0, 2]]).all()


def test_features_that_do_not_fit_are_refused():
    conditioner = _conditioner()
    for shape in ((17, ENCODER['width']), (3, 7), (ENCODER['width'],)):
        with pytest.raises(ValueError, match='features of shape'):
            conditioner.arrays([{'caption': 'a', 'text': np.zeros(shape, np.float32)}])
    with pytest.raises(ValueError, match='1 of 2 examples'):
        conditioner.arrays([{'text': np.zeros((1, ENCODER['width']))}, {'caption': 'a'}])


def test_what_a_network_is_told_and_what_is_held():
    conditioner = _conditioner(sizes=True)
    assert conditioner.provides == {
        'caption_width': ENCODER['width'],
        'caption_length': 16,
        'micro_conditioning': True,
    }
    assert conditioner.holds == {'text': conditioner.text} and conditioner.trains == ()
    image = np.zeros((20, 10, 3), np.uint8)
    arrays = conditioner.arrays([{'caption': 'a', 'image': image}, {'caption': 'b', 'size': (8, 16)}])
    assert arrays['size'].tolist() == [[20, 10], [8, 16]] and arrays['aspect'].tolist() == [[2.0], [0.5]]
    fresh = jax.eval_shape(conditioner.init, jax.random.key(0), arrays)
    cond = jax.eval_shape(conditioner.embed, fresh, arrays, np.zeros(2, bool), None)
    assert cond['size'].shape == (2, 2) and cond['aspect'].shape == (2, 1)
    assert t5.build().text.width == 4096


def test_half_precision_features_come_back_in_the_encoders_dtype(params):
    conditioner = _conditioner(dtype='bfloat16')
    features = _features(conditioner, params)
    assert features[0].dtype == jnp.bfloat16
    arrays = conditioner.arrays([{'caption': '', 'text': one} for one in features])
    assert arrays['text'].dtype == jnp.bfloat16
    assert conditioner.embed({}, arrays, DROP, None)['text'].dtype == jnp.bfloat16


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused():
    with pytest.raises(ValueError, match='384 ids'):
        t5.build(**make_t5.SIZES)


@pytest.mark.parity
def test_prompts_equal_the_pipelines(params):
    """Cleaned, cut, padded and encoded as diffusers' PixArt pipelines do, the empty negative prompt too."""
    for package in ('torch', 'transformers', 'bs4'):
        pytest.importorskip(package)
    diffusers = pytest.importorskip('diffusers')
    from transformers import ByT5Tokenizer

    conditioner = _conditioner(empty_null=True)
    model = make_t5.reference(conditioner.text, make_t5.parameters(conditioner.text)[0])
    parts = {'vae': None, 'transformer': None, 'scheduler': None}
    pipeline = diffusers.PixArtAlphaPipeline(ByT5Tokenizer(), model, **parts)
    text, mask, null, null_mask = (
        tensor.detach().numpy()
        for tensor in pipeline.encode_prompt(list(CAPTIONS), clean_caption=True, max_sequence_length=16)
    )
    for drop, (features, real) in {False: (text, mask), True: (null, null_mask)}.items():
        cond = _embed(conditioner, params, drop=np.full(3, drop))
        assert relative_error(cond['text'], features) <= 1e-4
        np.testing.assert_array_equal(cond['text_mask'], real)
