"""CLIP against transformers and OpenCLIP with the same random weights, live and stored."""

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import encoder_networks as encoders
from golden.seeded import disagreements, normal, relative_error, stored
from PIL import Image

from jaxgen.encoders import clip, clip_tokens, preprocess
from jaxgen.weights import clip as names
from jaxgen.weights.names import to_jaxgen, to_published

TOLERANCE = 1e-4
CASES = tuple(encoders.CLIP_CASES)


@functools.cache
def ours(case: str) -> tuple:
    network, params = encoders.build('clip', encoders.CLIP_CASES[case])
    return network, params, encoders.run_clip(network, params, encoders.CLIP_PICTURES[case], encoders.ids())


@pytest.mark.parametrize('case', CASES)
def test_golden(case):
    every, prefix = stored('clip'), f'{case}/'
    reference = {name.removeprefix(prefix): every[name] for name in every.files if name.startswith(prefix)}
    assert len(reference) > 30
    assert not disagreements(ours(case)[2], reference, TOLERANCE)


@pytest.mark.parity
@pytest.mark.parametrize('case', CASES)
def test_both_towers_and_their_gradients_equal_transformers(case):
    pytest.importorskip('transformers')
    network, params, found = ours(case)
    model = encoders.transformers_model('clip', network, params)
    reference = encoders.run_transformers_clip(model, encoders.CLIP_PICTURES[case], encoders.ids())
    assert set(reference) == set(found)
    assert not disagreements(found, reference, TOLERANCE)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize('size', tuple(encoders.FULL['clip']))
def test_full_width_equals_transformers(size):
    torch = pytest.importorskip('torch')
    pytest.importorskip('transformers')
    network, params = encoders.build('clip', encoders.FULL['clip'][size])
    model = encoders.transformers_model('clip', network, params)
    tokens, x = encoders.ids(77, 999), normal('pixels', (2, 224, 224, 3))
    read = jax.jit(lambda x: network.apply({'params': params}, tokens, x))
    with torch.inference_mode():
        theirs = model(torch.from_numpy(tokens), torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    error = relative_error(read(x), theirs.logits_per_image.numpy())
    print(f'{size}: {error:.1e}')
    assert error <= TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize('case', CASES)
def test_equals_open_clip(case):
    torch = pytest.importorskip('torch')
    if not importlib.util.find_spec('open_clip'):
        pytest.skip('open_clip_torch is not installed')
    settings = encoders.CLIP_CASES[case]
    network, params = encoders.build('clip', settings)
    model = encoders.open_clip_model(network, params)
    x, tokens = encoders.pixels((16, 16)), encoders.ids()
    with torch.inference_mode():
        image, text, scale = model(
            torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(tokens).long()
        )
    logits = (scale * image @ text.T).numpy()
    assert relative_error(network.apply({'params': params}, tokens, x), logits) <= TOLERANCE


def test_the_open_clip_layout_is_the_other_one_fused_and_renamed():
    network, params, _ = ours('quick')
    layouts = names.layouts(network)
    theirs, fused = (to_published(layouts[name], params) for name in ('transformers', 'open_clip'))
    for ours_, prefix in (('text_model', 'transformer'), ('vision_model', 'visual.transformer')):
        layer = f'{ours_}.encoder.layers.1'
        for leaf in ('weight', 'bias'):
            parts = [theirs[f'{layer}.self_attn.{part}_proj.{leaf}'] for part in 'qkv']
            whole = fused[f'{prefix}.resblocks.1.attn.in_proj_{leaf}']
            np.testing.assert_array_equal(whole, np.concatenate(parts))
            np.testing.assert_array_equal(
                fused[f'{prefix}.resblocks.1.mlp.c_proj.{leaf}'], theirs[f'{layer}.mlp.fc2.{leaf}']
            )
    np.testing.assert_array_equal(fused['visual.proj'], theirs['visual_projection.weight'].T)
    np.testing.assert_array_equal(fused['text_projection'], theirs['text_projection.weight'].T)
    again = to_jaxgen(layouts['open_clip'], fused, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


ALONE = [(tower, project) for tower in ('text', 'vision') for project in (False, True)]


def tower(name: str, project: bool) -> tuple:
    settings = encoders.CLIP_CASES['erf'] | {'towers': name, 'project': project}
    return encoders.build('clip', settings)


@pytest.mark.parity
@pytest.mark.parametrize(('name', 'project'), ALONE)
def test_a_tower_alone_equals_transformers_and_is_read_back(name, project):
    torch = pytest.importorskip('torch')
    pytest.importorskip('transformers')
    network, params = tower(name, project)
    model = encoders.transformers_model('clip', network, params)
    inputs = (encoders.ids(),) if name == 'text' else (None, encoders.pixels((16, 16)))
    x = torch.from_numpy(inputs[0] if name == 'text' else inputs[1].transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        theirs = model(x)
    reading = network.apply({'params': params}, *inputs)
    assert (reading.embedding is not None) == project
    assert relative_error(reading.tokens, theirs.last_hidden_state.numpy()) <= TOLERANCE
    pooled = theirs[0] if project else theirs.pooler_output
    assert relative_error(reading.embedding if project else reading.pooled, pooled.numpy()) <= TOLERANCE

    config, arrays = encoders.saved(model)
    assert clip.build(**names.from_config(config)) == network
    again = to_jaxgen(names.layouts(network)['transformers'], arrays, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize('layout', ('transformers', 'open_clip'))
@pytest.mark.parametrize(('name', 'project'), ALONE)
def test_a_tower_alone_is_read_out_of_both(name, project, layout):
    both, params, _ = ours('erf')
    network, own = tower(name, project)
    published = to_published(names.layouts(both)[layout], params)
    found = to_jaxgen(names.layouts(network)[layout], published, own)
    expected = dict(params[name]) if project else {k: v for k, v in params[name].items() if k != 'projection'}
    jax.tree.map(np.testing.assert_array_equal, found, {name: expected})


@pytest.mark.parametrize(
    'settings', [*encoders.CLIP_CASES.values(), {'size': 'bigG/14'}, {'size': 'L/14@336'}]
)
def test_configs_are_read_as_they_are_written(settings):
    network = clip.build(**settings)
    written = json.loads(json.dumps(names.to_config(network)))
    assert clip.build(**names.from_config(written)) == network


def test_open_clip_configs_are_the_published_sizes():
    text = {'context_length': 77, 'vocab_size': 49408, 'width': 1024, 'heads': 16, 'layers': 24}
    for size, layers, width, head, ratio in (
        ('H/14', 32, 1280, 80, {}),
        ('g/14', 40, 1408, 88, {'mlp_ratio': 4.3637}),
    ):
        vision = {'image_size': 224, 'layers': layers, 'width': width, 'head_width': head, 'patch_size': 14}
        config = {'embed_dim': 1024, 'vision_cfg': vision | ratio, 'text_cfg': text}
        assert clip.build(**names.from_config({'model_cfg': config})) == clip.build(size)
    with pytest.raises(ValueError, match='hf_model_name'):
        names.from_config({'model_cfg': {'text_cfg': {'hf_model_name': 'roberta-base'}}})


def test_unlike_towers_and_unknown_activations_are_refused():
    with pytest.raises(ValueError, match="text's gelu is erf and the image's quick"):
        names.from_config({'architectures': ['CLIPModel'], 'text_config': {'hidden_act': 'gelu'}})
    with pytest.raises(ValueError, match='hidden_act'):
        names.from_config({'model_type': 'clip_text_model', 'hidden_act': 'relu'})


def test_published_parameter_counts():
    # Of transformers' CLIPModel, counted in torch.
    for size, count in (('B/32', 151_277_313), ('L/14', 427_616_513), ('H/14', 986_109_441)):
        network = clip.build(size)
        params = jax.eval_shape(network.init, jax.random.key(0), *names.inputs(network))['params']
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_padding_under_the_mask_changes_nothing_before_it():
    network, params = tower('text', True)
    ids = encoders.ids()
    mask = np.arange(ids.shape[1]) < 5
    read = jax.jit(lambda ids, mask: network.apply({'params': params}, ids, mask, method='read_text').tokens)
    plain, masked = read(ids, None), read(ids, np.tile(mask, (3, 1)))
    np.testing.assert_allclose(masked[:, :5], plain[:, :5], rtol=1e-5, atol=1e-6)
    assert np.abs(masked[:, 5:] - plain[:, 5:]).max() > 1e-3


def test_bfloat16_stays_near_float32():
    _, params, found = ours('quick')
    half = clip.build(**encoders.CLIP_CASES['quick'], dtype='bfloat16')
    stored_half = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), params)
    read = jax.jit(lambda p: half.apply({'params': p}, encoders.ids(), encoders.pixels((16, 16))))
    low = read(stored_half)
    assert low.dtype == jnp.float32
    assert 1e-4 < relative_error(low, found['logits']) < 1e-1


PIECES = ['lo', 'low', 'er</w>', 'th', 'the</w>', 'ti', 'tim', 'time</w>', '1</w>', 'é</w>']
MERGES = ['l o', 'lo w', 'e r</w>', 't h', 'th e</w>', 't i', 'ti m', 'tim e</w>']
TEXTS = [
    'the  LOWER time',
    "It's 10 o'clock, they'll\tsay!!",
    'caf\u00e9 cafe\u0301 \u6771\u4eac \U0001f680 na\u00efve',
    '',
    '   ',
    'one <|endoftext|> two <|startoftext|>three',
    'the time ' * 40,
]


@pytest.fixture(params=['vocab.json', 'tokenizer.json'])
def vocabulary(request, tmp_path):
    """A folder with a small vocabulary of CLIP's kind: all bytes, some pieces, the start and the end."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f'{letter}</w>' for letter in alphabet), *PIECES[:2], *PIECES[2:8]]
    tokens = [*dict.fromkeys(tokens), clip_tokens.START, clip_tokens.END]
    table = {token: number for number, token in enumerate(tokens)}
    if request.param == 'vocab.json':
        (tmp_path / 'vocab.json').write_text(json.dumps(table))
        (tmp_path / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(MERGES) + '\n')
    else:
        model = {'type': 'BPE', 'vocab': table, 'merges': [merge.split() for merge in MERGES]}
        (tmp_path / 'tokenizer.json').write_text(json.dumps({'model': model}))
    return tmp_path, table


def test_tokens_are_cut_padded_and_refused(vocabulary):
    folder, table = vocabulary
    tokens = clip_tokens.open_tokens(folder, 8)
    start, end = table[clip_tokens.START], table[clip_tokens.END]
    ids, mask = tokens.ids(['the Time', 'the time ' * 9])
    words = [table['the</w>'], table['time</w>']]
    assert ids.tolist() == [[start, *words, *[end] * 5], [start, *words * 3, end]]
    assert mask.sum(1).tolist() == [4, 8]
    (folder / 'special_tokens_map.json').write_text(json.dumps({'pad_token': '!'}))
    assert clip_tokens.open_tokens(folder, 8).ids(['the'])[0][0, -1] == table['!']
    with pytest.raises(ValueError, match='no folder of a CLIP tokenizer'):
        clip_tokens.open_tokens(folder / 'elsewhere')


@pytest.mark.parity
def test_ids_equal_transformers(vocabulary):
    transformers = pytest.importorskip('transformers')
    folder, table = vocabulary
    reference = transformers.CLIPTokenizer(vocab=table, merges=[tuple(merge.split()) for merge in MERGES])
    theirs = reference(TEXTS, padding='max_length', max_length=16, truncation=True, return_tensors='np')
    ids, mask = clip_tokens.open_tokens(folder, 16).ids(TEXTS)
    np.testing.assert_array_equal(ids, theirs['input_ids'])
    np.testing.assert_array_equal(mask, theirs['attention_mask'])


def pictures() -> list[np.ndarray]:
    """Bytes of smooth pictures of three shapes."""
    shapes = ((300, 420), (512, 256), (225, 224))
    return [
        np.uint8(127 + 120 * np.sin(np.add.outer(np.arange(h) / 9, np.arange(w) / 5)[..., None] + [0, 1, 2]))
        for h, w in shapes
    ]


@pytest.mark.parity
def test_preprocessing_equals_transformers():
    transformers = pytest.importorskip('transformers')
    clips = transformers.CLIPImageProcessorPil()
    imagenet = {'image_mean': list(preprocess.DINOV2.mean), 'image_std': list(preprocess.DINOV2.deviation)}
    dinos = transformers.BitImageProcessorPil(size={'shortest_edge': 256}, **imagenet)
    for made, reference in ((preprocess.CLIP, clips), (preprocess.DINOV2, dinos)):
        assert preprocess.from_config(json.loads(reference.to_json_string())) == made
        for picture in pictures():
            theirs = reference(Image.fromarray(picture), return_tensors='np')['pixel_values'][0]
            np.testing.assert_allclose(made.on_host(picture), theirs.transpose(1, 2, 0), atol=1e-5)


def test_preprocessing_on_the_device_differs_by_its_rounding_alone():
    for made in (preprocess.CLIP, preprocess.DINOV2):
        for picture in pictures():
            x = jnp.asarray(picture[None], jnp.float32) / 127.5 - 1
            error = np.abs(made.on_device(x)[0] - made.on_host(picture)) * np.float32(made.deviation)
            assert error.max() <= 1.5 / 255
    with pytest.raises(ValueError, match='crop'):
        preprocess.from_config({'do_center_crop': False})
