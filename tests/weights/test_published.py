"""Published folders: opened by their config alone, written as others read them, refused in a sentence."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from golden import scheduler_configs, seeded

from jaxgen.encoders import clip, dinov2, t5
from jaxgen.models import dit, pixart
from jaxgen.tokenizers import kl_vae
from jaxgen.weights import files, published, safetensors
from jaxgen.weights.names import entries

T5 = {'vocabulary': 40, 'width': 16, 'ff': 24, 'depth': 2, 'heads': 2, 'head_width': 8}
VAE = {'widths': (8, 16), 'blocks': 1, 'groups': 4, 'resolution': 32, 'sample_size': 32}
SMALL = {'hidden': 24, 'depth': 2, 'heads': 2, 'base_size': 4}
DIT = SMALL | {'classes': 5, 'frequency_shift': 1}
PIXART = SMALL | {'caption_width': 16, 'micro_conditioning': True}
TEXT_TOWER = {'vocabulary': 50, 'length': 8, 'eos': 49, 'text_width': 16, 'text_depth': 2, 'text_heads': 2}
TOWERS = TEXT_TOWER | {'patch': 4, 'image': 8, 'width': 16, 'depth': 2, 'heads': 2, 'hidden': 32}
NETWORKS = {
    'AutoencoderKL': lambda: kl_vae.build(**VAE).holds['tokenizer'],
    'DiTTransformer2DModel': lambda: dit.build(**DIT),
    'PixArtTransformer2DModel': lambda: pixart.build(**PIXART),
    'T5EncoderModel': lambda: t5.build(**T5),
    'CLIPModel': lambda: clip.build(**TOWERS, projection=8),
    'Dinov2Model': lambda: dinov2.build(width=12, depth=2, heads=2, patch=4, image=8),
}
SCHEDULERS = {
    'PixArtAlphaPipeline': 'pixart_alpha',
    'PixArtSigmaPipeline': 'pixart_sigma',
    'DiTPipeline': 'dit',
}


def random(network):
    inputs = published.family_of(network).inputs(network)
    abstract = jax.eval_shape(network.init, jax.random.key(0), *inputs)['params']
    return jax.tree.map(lambda leaf: seeded.normal(str(leaf.shape), leaf.shape), abstract)


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def saved(folder, name):
    """(network, its parameters), and as published in the folder."""
    network = NETWORKS[name]()
    params = random(network)
    published.save_network(folder, network, params)
    return network, params


@pytest.fixture(scope='module', params=NETWORKS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp('published') / request.param
    return str(path), request.param, *saved(path, request.param)


def test_a_folder_opens_as_what_was_saved(folder):
    path, name, network, params = folder
    opened, found = published.open_network(path)
    assert opened == network
    if name == 'PixArtTransformer2DModel':  # which is published without
        assert not np.any(found['null_text'])
        found = {**found, 'null_text': params['null_text']}
    assert_equal(found, params)
    assert all(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(found))
    opened, found = published.open_network(path, 'bfloat16')
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype('bfloat16')}
    assert getattr(opened, 'dtype', jnp.bfloat16) == jnp.bfloat16


@pytest.mark.parity
def test_public_libraries_read_and_write_the_same(folder, tmp_path):
    path, name, network, params = folder
    library = pytest.importorskip(
        'diffusers' if 'Transformer2D' in name or name[:4] == 'Auto' else 'transformers'
    )
    theirs, about = getattr(library, name).from_pretrained(path, output_loading_info=True)
    assert not any(about[f'{fault}_keys'] for fault in ('missing', 'unexpected', 'mismatched'))
    theirs.save_pretrained(tmp_path)
    ours, back = files.open_arrays(path), files.open_arrays(str(tmp_path))
    assert ours.keys() == back.keys()
    for tensor, array in ours.items():
        np.testing.assert_array_equal(back[tensor], array)
    assert published.open_network(str(tmp_path))[0] == network


def test_half_precision_is_kept_as_stored(tmp_path):
    network = NETWORKS['T5EncoderModel']()
    params = random(network)
    published.save_network(tmp_path / 'half', network, params, 'bfloat16')
    as_stored = published.load(network, str(tmp_path / 'half'), shapes(params), as_stored=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(as_stored)} == {jnp.dtype('bfloat16')}
    up = published.load(network, str(tmp_path / 'half'), shapes(params))
    assert {leaf.dtype for leaf in jax.tree.leaves(up)} == {np.dtype('float32')}
    assert_equal(up, jax.tree.map(lambda leaf: np.float32(leaf.astype(jnp.bfloat16)), params))


def test_the_layout_is_found_by_its_names(tmp_path):
    network = NETWORKS['PixArtTransformer2DModel']()
    params = random(network)
    for name, table in published.family_of(network).layouts(network).items():
        file = tmp_path / f'{name}.safetensors'
        safetensors.write(file, entries(table, params))
        found = published.load(network, str(file), shapes(params))
        report = published.report(network, str(file), shapes(params))
        assert f"in the layout '{name}'" in report
        lacking = 'not there, and left at zero: 1 (null_text)'
        assert (lacking in report) == (not np.any(found['null_text'])) == (name == 'diffusers')
        own = {**shapes(params), 'null_text': params['null_text']}
        assert_equal(published.load(network, str(file), own), params)


def test_arrays_that_lie_apart(tmp_path):
    network = NETWORKS['T5EncoderModel']()
    params = random(network)
    table = next(iter(published.family_of(network).layouts(network).values()))
    arrays = entries(table, params)
    paths = [str(tmp_path / f'{half}.safetensors') for half in 'ab']
    safetensors.write(paths[0], arrays[:3])
    safetensors.write(paths[1], arrays[3:])
    assert_equal(published.load(network, ','.join(paths), shapes(params)), params)
    with pytest.raises(ValueError, match='missing: '):
        published.load(network, paths[0], shapes(params))
    with pytest.raises(ValueError, match='so does a path before it'):
        published.load(network, f'{paths[0]},{paths[0]}', shapes(params))


def test_the_wrong_weights_are_refused_by_their_path(tmp_path):
    saved(tmp_path / 'dit', 'DiTTransformer2DModel')
    network = NETWORKS['PixArtTransformer2DModel']()
    like = shapes(random(network))
    for refuse in (published.load, published.check):
        with pytest.raises(ValueError, match='^.*/dit: these weights do not fit .* missing, '):
            refuse(network, str(tmp_path / 'dit'), like)


@pytest.mark.parametrize(
    ('config', 'sentence'),
    [
        (None, 'config.json is missing'),
        ('{', 'is no JSON'),
        ('[]', 'holds a list'),
        ({}, 'no network here is called'),
        ({'_class_name': 'UNet2DConditionModel'}, "'UNet2DConditionModel'; known are .*AutoencoderKL"),
        ({'model_type': 't5', 'feed_forward_proj': 'swish'}, "t5: feed_forward_proj is 'swish'"),
        ({'_class_name': 'Transformer2DModel', 'norm_type': 'layer_norm'}, 'dit: .*; pixart: '),
    ],
)
def test_a_config_that_is_not_known_is_refused(tmp_path, config, sentence):
    if config is not None:
        (tmp_path / 'config.json').write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ValueError, match=sentence):
        published.open_network(str(tmp_path))


def test_a_class_of_two_families_is_told_by_its_config():
    for name in ('DiTTransformer2DModel', 'PixArtTransformer2DModel'):
        network = NETWORKS[name]()
        family = published.family_of(network)
        config = {**family.to_config(network), '_class_name': 'Transformer2DModel'}
        assert published.family_for(config) == (family, family.from_config(config))


def test_a_network_without_a_layout_is_refused():
    with pytest.raises(ValueError, match='Dense has no published layout'):
        published.family_of(nn.Dense(3))


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    def failing(*_):
        raise OSError('the disk is full')

    network = NETWORKS['T5EncoderModel']()
    params = random(network)
    monkeypatch.setattr(safetensors, 'write_sharded', failing)
    with pytest.raises(OSError, match='the disk is full'):
        published.save_network(tmp_path / 'new', network, params)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    published.save_network(tmp_path / 'new', network, params)
    with pytest.raises(ValueError, match='is there already'):
        published.save_network(tmp_path / 'new', network, params)


def pipeline(folder, name):
    """A folder of a pipeline, without weights."""
    labels = name == 'DiTPipeline'
    networks = {
        'transformer': NETWORKS['DiTTransformer2DModel' if labels else 'PixArtTransformer2DModel'](),
        'vae': NETWORKS['AutoencoderKL'](),
        **({} if labels else {'text_encoder': NETWORKS['T5EncoderModel']()}),
    }
    scheduler, options = scheduler_configs.CASES[SCHEDULERS[name]]
    index = {'_class_name': name, 'id2label': {'0': 'tench'}, 'scheduler': ['diffusers', scheduler]}
    index['feature_extractor'] = [None, None]
    write(folder / 'scheduler' / 'scheduler_config.json', options)
    for component, network in networks.items():
        family = published.family_of(network)
        write(folder / component / 'config.json', family.to_config(network))
        index[component] = ['some library', family.CLASSES[0]]
    if not labels:
        (folder / 'tokenizer').mkdir()
        index['tokenizer'] = ['transformers', 'T5Tokenizer']
    write(folder / 'model_index.json', index)
    return index


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize('name', SCHEDULERS)
def test_a_pipeline_decides_the_sections(tmp_path, name):
    pipeline(tmp_path, name)
    sections, sources = published.sections(str(tmp_path))
    places = {'model': 'transformer', 'tokenizer': 'vae', 'text': 'text_encoder'}
    if name == 'DiTPipeline':
        places.pop('text')
        assert sections['conditioner'] == {'name': 'labels', 'classes': 5}
        assert sections['model'].pop('name') == 'dit'
        assert dit.build(**sections['model']) == NETWORKS['DiTTransformer2DModel']()
    else:
        conditioner = sections['conditioner']
        assert conditioner['length'] == (120 if 'Alpha' in name else 300)
        assert conditioner['sizes'] and conditioner['empty_null']
        assert conditioner['tokens'] == str(tmp_path / 'tokenizer')
        assert conditioner['name'] == 't5' and conditioner['width'] == T5['width']
        assert sections['model'].pop('name') == 'pixart'
        assert pixart.build(**sections['model']) == NETWORKS['PixArtTransformer2DModel']()
    assert sources == {ours: str(tmp_path / place) for ours, place in places.items()}
    assert sections['tokenizer'].pop('name') == 'kl_vae'
    built = kl_vae.build(**sections['tokenizer'], resolution=32)
    assert built.holds['tokenizer'] == NETWORKS['AutoencoderKL']()
    assert sections['path']['name'] == 'vp' and sections['sampler']['name'] == 'diffusion'


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong with a pipeline's folder, and what is said about it."""

    change: object
    said: str


FAULTS = {
    'unknown': Fault(
        lambda folder, index: index.update(_class_name='FluxPipeline'), "the pipeline 'FluxPipeline'"
    ),
    'more': Fault(lambda folder, index: index.update(unet=['diffusers', 'UNet']), "component 'unet'"),
    'absent': Fault(lambda folder, index: index.update(vae=[None, None]), 'names no vae'),
    'part': Fault(lambda folder, index: (folder / 'tokenizer').rmdir(), 'the folder tokenizer is missing'),
    'config': Fault(
        lambda folder, index: (folder / 'vae' / 'config.json').unlink(), 'vae: .*config.json is missing'
    ),
    'wrong': Fault(
        lambda folder, index: (folder / 'text_encoder' / 'config.json').rename(
            folder / 'transformer' / 'config.json'
        ),
        'transformer: this is a t5, and PixArtAlphaPipeline has a pixart',
    ),
    'other': Fault(
        lambda folder, index: index.update(_class_name='DiTPipeline'),
        'transformer: this is a pixart, and DiTPipeline has a dit',
    ),
    'scheduler': Fault(
        lambda folder, index: index.update(scheduler=['diffusers', 'PNDMScheduler']), 'PNDMScheduler'
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_faulty_pipeline_is_refused_in_a_line(tmp_path, fault):
    index = pipeline(tmp_path, 'PixArtAlphaPipeline')
    FAULTS[fault].change(tmp_path, index)
    write(tmp_path / 'model_index.json', index)
    with pytest.raises(ValueError, match=f'^{tmp_path}: .*{FAULTS[fault].said}') as error:
        published.sections(str(tmp_path))
    assert '\n' not in str(error.value)
