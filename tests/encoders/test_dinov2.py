"""DINOv2 against transformers and the authors' code with the same random weights, live and stored."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import authors
from golden import encoder_networks as encoders
from golden.seeded import disagreements, normal, relative_error, stored

from jaxgen.encoders import dinov2
from jaxgen.weights import dinov2 as names
from jaxgen.weights.names import to_jaxgen, to_published

TOLERANCE = 1e-4
CASES = tuple(encoders.DINOV2_CASES)


@functools.cache
def ours(case: str) -> tuple:
    network, params = encoders.build('dinov2', encoders.DINOV2_CASES[case])
    return network, params, encoders.run_dinov2(network, params, encoders.DINOV2_PICTURES[case])


@pytest.mark.parametrize('case', CASES)
def test_golden(case):
    every, prefix = stored('dinov2'), f'{case}/'
    reference = {name.removeprefix(prefix): every[name] for name in every.files if name.startswith(prefix)}
    assert len(reference) > 20
    assert not disagreements(ours(case)[2], reference, TOLERANCE)


@pytest.mark.parity
@pytest.mark.parametrize('case', CASES)
def test_features_and_gradients_equal_transformers_and_weights_are_read_back(case):
    pytest.importorskip('transformers')
    network, params, found = ours(case)
    model = encoders.transformers_model('dinov2', network, params)
    reference = encoders.run_transformers_dinov2(model, encoders.DINOV2_PICTURES[case])
    assert set(reference) == set(found)
    assert not disagreements(found, reference, TOLERANCE)
    config, arrays = encoders.saved(model)
    assert dinov2.build(**names.from_config(config)) == network
    again = to_jaxgen(names.layouts(network)['transformers'], arrays, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize('size', tuple(encoders.FULL['dinov2']))
def test_full_width_equals_transformers(size):
    torch = pytest.importorskip('torch')
    pytest.importorskip('transformers')
    network, params = encoders.build('dinov2', encoders.FULL['dinov2'][size])
    model = encoders.transformers_model('dinov2', network, params)
    x = normal('pixels', (1, 224, 224, 3))
    with torch.inference_mode():
        theirs = model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).last_hidden_state.numpy()
    features = jax.jit(lambda x: network.apply({'params': params}, x))(x)
    tokens = jnp.concatenate([features.class_token[:, None], features.registers, features.patches], axis=1)
    error = relative_error(tokens, theirs)
    print(f'{size}: {error:.1e}')
    assert error <= TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('picture', [(16, 16), (20, 32), (12, 8)])
def test_equals_the_authors(case, picture):
    torch = pytest.importorskip('torch')
    if not authors.checkout('JAXGEN_DINOV2'):
        pytest.skip("JAXGEN_DINOV2 names no checkout of the authors' code")
    settings = encoders.DINOV2_CASES[case]
    network, params = encoders.build('dinov2', settings | {'offset': 0.0 if 'registers' in settings else 0.1})
    model = encoders.authors_dinov2(network, params)
    x = encoders.pixels(picture)
    hide = np.arange(picture[0] * picture[1] // 16) % 3 == np.arange(2)[:, None]
    with torch.inference_mode():
        theirs = model.forward_features(
            torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(hide)
        )
    features = network.apply({'params': params}, x, hide, ('*.out',))
    for mine, name in (
        (features.class_token, 'x_norm_clstoken'),
        (features.patches, 'x_norm_patchtokens'),
        (features.captured['*.out'][-1], 'x_prenorm'),
    ):
        assert relative_error(mine, theirs[name].numpy()) <= TOLERANCE
    if network.registers:
        assert relative_error(features.registers, theirs['x_norm_regtokens'].numpy()) <= TOLERANCE


@pytest.mark.parametrize('case', CASES)
def test_the_authors_layout_and_ours_are_one(case):
    network, params, _ = ours(case)
    layouts = names.layouts(network)
    theirs, fused = (to_published(layouts[name], params) for name in ('transformers', 'authors'))
    attention = 'encoder.layer.1.attention.attention'
    parts = [theirs[f'{attention}.{name}.weight'] for name in ('query', 'key', 'value')]
    np.testing.assert_array_equal(fused['blocks.1.attn.qkv.weight'], np.concatenate(parts))
    assert ('blocks.0.mlp.w12.weight' in fused) == network.swiglu
    assert fused['cls_token'].shape == (1, 1, 32) and fused['pos_embed'].shape == (1, 17, 32)
    again = to_jaxgen(layouts['authors'], fused, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize('settings', [{'size': 'S'}, {'size': 'g', 'registers': 4}, {'mask_token': False}])
def test_configs_are_read_as_they_are_written(settings):
    network = dinov2.build(**settings)
    written = json.loads(json.dumps(names.to_config(network)))
    assert dinov2.build(**names.from_config(written)) == network


def test_what_transformers_cannot_say_is_refused():
    with pytest.raises(ValueError, match='hidden is 100'):
        names.to_config(dinov2.build(hidden=100))
    with pytest.raises(ValueError, match='offset 0.1'):
        names.to_config(dinov2.build(offset=0.1))
    with pytest.raises(ValueError, match='hidden_act'):
        names.from_config({'model_type': 'dinov2', 'hidden_act': 'relu'})
    with pytest.raises(ValueError, match='model_type'):
        names.from_config({'model_type': 'dinov3'})


def test_published_parameter_counts():
    # Of transformers' models, counted in torch.
    for settings, count in (
        ({'size': 'S'}, 22_056_576),
        ({'size': 'B', 'registers': 4}, 86_583_552),
        ({'size': 'g'}, 1_136_480_768),
    ):
        network = dinov2.build(**settings)
        params = jax.eval_shape(network.init, jax.random.key(0), *names.inputs(network))['params']
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count, settings


def test_hidden_patches_are_the_mask_token():
    network, params, _ = ours('plain')
    x = encoders.pixels((16, 16))
    read = jax.jit(lambda x, hide: network.apply({'params': params}, x, hide).patches)
    hide = np.zeros((2, 16), bool)
    np.testing.assert_array_equal(read(x, hide | True), read(np.zeros_like(x), hide | True))
    assert relative_error(read(x, hide | (np.arange(16) == 3)), read(x, hide)) > 1e-2
