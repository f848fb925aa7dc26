"""AutoencoderKL against diffusers, live and stored, and the ways of working on large images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import make_kl_vae as cases
from golden.seeded import disagreements, relative_error, stored
from jax.sharding import NamedSharding, PartitionSpec

from jaxgen.keys import split_examples
from jaxgen.tokenizers import kl_vae
from jaxgen.weights import kl_vae as family
from jaxgen.weights.names import to_published

TOLERANCE = 1e-4


@functools.cache
def made(**settings):
    network = cases.network(cases.TINY | settings)
    return network, cases.parameters(network, family.layouts(network)['diffusers'])


def run(network, params):
    """Moments, pixels and all gradients, as cases.run_reference has them."""
    x, z = cases.image(network), cases.latents(network)
    of_moments, of_pixels = cases.cotangents(network)

    @jax.jit
    def results(params, x, z):
        def total(params, x, z):
            moments = network.apply({'params': params}, x, method='moments')
            pixels = network.apply({'params': params}, z, method='decode')
            return (moments * of_moments).sum() + (pixels * of_pixels).sum(), (moments, pixels)

        return jax.grad(total, (0, 1, 2), has_aux=True)(params, x, z)

    (by_params, by_x, by_z), (moments, pixels) = results(params, x, z)
    inputs = {'moments': moments, 'pixels': pixels, 'by_x': by_x, 'by_z': by_z}
    return inputs | to_published(family.layouts(network)['diffusers'], by_params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(network, name, params, x):
    return network.apply({'params': params}, x, method=name)


def tokenizer(**settings):
    return kl_vae.build(24, **cases.TINY, **settings)


def through(tokenizer, params, name, x):
    """Moments or pixels the way that the tokenizer works on large images."""
    x = x if name == 'moments' else tokenizer.network.normalised(x)
    return jax.jit(getattr(tokenizer, name))({'tokenizer': params}, x)


def test_golden():
    ours, reference = run(*made()), dict(stored('kl_vae'))
    tiled = [name for name in reference if name.startswith('tiled')]
    for name in tiled:
        del reference[name]
    assert len(reference) == 14
    assert not disagreements(ours, reference, TOLERANCE)


@pytest.mark.parity
def test_outputs_and_gradients_equal_diffusers():
    pytest.importorskip('diffusers')
    network, params = made()
    reference = cases.run_reference(cases.reference(network, params), network)
    assert not disagreements(run(network, params), reference, TOLERANCE)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize('settings', [{}, cases.FULL], ids=['stable_diffusion', 'sixteen_channels'])
def test_full_width_equals_diffusers(settings):
    pytest.importorskip('diffusers')
    settings = {'widths': cases.FULL['widths'], 'sample_size': 512} | settings
    network = cases.network(settings)
    params = cases.parameters(network, family.layouts(network)['diffusers'])
    reference = cases.run_reference(cases.reference(network, params), network)
    ours = run(network, params)
    print({name: relative_error(ours[name], reference[name]) for name in list(reference)[:4]})
    assert not disagreements(ours, reference, TOLERANCE)


@pytest.mark.parametrize(('name', 'make'), [('moments', cases.image), ('pixels', cases.latents)])
def test_tiles_equal_diffusers(name, make):
    network, params = made()
    ours = through(tokenizer(decoding='tiled'), params, name, make(network, cases.TILED_SIDES, 1))
    theirs = stored('kl_vae')[f'tiled_{name}']
    assert relative_error(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize(('name', 'make'), [('moments', cases.image), ('pixels', cases.latents)])
def test_exact_equals_whole(name, make):
    network, params = made()
    x = make(network, (20, 12))
    whole = through(tokenizer(), params, name, x)
    # Strips of seven rows of twenty, of four of ten, of two of five.
    exact = through(tokenizer(decoding='exact', strips=3), params, name, x)
    assert relative_error(exact, whole) <= 1e-5


def test_sliced_equals_whole_and_tiled_does_not():
    network, params = made()
    x = cases.image(network)
    whole, sliced, tiled = (
        through(tokenizer(decoding=decoding, tile=16), params, 'moments', x)
        for decoding in ('whole', 'sliced', 'tiled')
    )
    assert relative_error(sliced, whole) <= 1e-5 and relative_error(tiled, whole) > 1e-2


def test_exact_decoding_needs_little_memory():
    z = jax.ShapeDtypeStruct((1, 64, 64, 4), jnp.float32)

    def temporary(decoding):
        settings = {'widths': (32, 32, 64), 'blocks': 1, 'middle_attention': False}
        network = kl_vae.build(256, **settings, decoding=decoding).network
        params = jax.eval_shape(network.init, jax.random.key(0), *family.inputs(network))
        decode = jax.jit(lambda params, z: network.apply(params, z, method='decode'))
        return decode.lower(params, z).compile().memory_analysis().temp_size_in_bytes

    one_map = 256 * 256 * 32 * 4  # the widest
    # A layer's input and output, and the shortcut.
    assert temporary('exact') < 3.3 * one_map


def test_rows_may_be_sharded():
    network, params = made()
    z = cases.latents(network, (64, 32))
    decode = jax.jit(lambda p, z: network.apply({'params': p}, z, method='decode'))
    whole = decode(params, z)
    mesh = jax.make_mesh((2, 4), ('data', 'sequence'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        # Placed by the network itself, whatever its input is.
        sharded = decode(params, jax.device_put(z, NamedSharding(mesh, PartitionSpec('data'))))
        assert decode.lower(params, z).compile().as_text().count('collective-permute(') > 0
    assert relative_error(sharded, whole) <= 1e-5
    assert sharded.sharding.spec[:2] == ('data', 'sequence')


def test_bfloat16_stays_near_float32():
    network, params = made()
    half, _ = made(dtype='bfloat16')
    z = cases.latents(network)
    stored_low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    ours = apply(half, 'decode', stored_low, z)
    assert ours.dtype == jnp.float32
    assert 1e-4 < relative_error(ours, apply(network, 'decode', params, z)) < 0.1


def test_tokenizer_is_uint8_to_normalised_latents_and_back():
    ours = tokenizer(scale=0.5, shift=0.25)
    params = {'tokenizer': made()[1]}
    assert ours.holds == {'tokenizer': ours.network} and ours.trains == ()
    assert ours.latent == (6, 6, 4) and ours.latent_of(24, 32) == (6, 8, 4)
    batch = {'image': np.random.RandomState(0).randint(0, 256, (3, 24, 32, 3)).astype(np.uint8)}
    keys = split_examples(jax.random.key(0), jnp.arange(3))
    encode = jax.jit(ours.encode)
    latents = encode(params, batch, keys)
    assert latents.shape == (3, 6, 8, 4) and latents.dtype == jnp.float32
    # An example's draw is its key's, whatever stands beside it.
    again = encode(params, {'image': batch['image'][::-1]}, keys[::-1])
    assert relative_error(again, latents[::-1]) <= 1e-5

    images = batch['image'].astype(np.float32) / 127.5 - 1
    moments = apply(ours.network, 'moments', params['tokenizer'], images)
    mean, log_variance = np.split(moments, 2, axis=-1)
    noise = jnp.stack([jax.random.normal(key, (6, 8, 4)) for key in keys])
    drawn = mean + np.exp(np.clip(log_variance, -30, 20) / 2) * noise
    assert relative_error(latents, (drawn - 0.25) * 0.5) <= 1e-5
    likely = jax.jit(tokenizer(scale=0.5, shift=0.25, sample=False).encode)(params, batch, keys)
    assert relative_error(likely, (mean - 0.25) * 0.5) <= 1e-5

    pixels = apply(ours.network, 'decode', params['tokenizer'], latents / 0.5 + 0.25)
    decoded = jax.jit(ours.decode)(params, latents)
    assert decoded.dtype == jnp.uint8 and decoded.shape == (3, 24, 32, 3)
    assert np.abs(np.asarray(decoded, int) - np.clip(np.round((pixels + 1) * 127.5), 0, 255)).max() <= 1


def test_statistics_a_channel():
    mean, deviation = (1.0, 2.0, 3.0, 4.0), (0.5, 1.0, 1.5, 2.0)
    network = tokenizer(mean=mean, deviation=deviation, scale=2.0).network
    z = cases.latents(network)
    latents = network.apply({}, z, method='normalised')
    assert relative_error(latents, (z - np.array(mean)) / np.array(deviation) * 2) <= 1e-6
    assert relative_error(network.apply({}, latents, method='restored'), z) <= 1e-6


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        ({'resolution': 30}, '3 levels make 4 pixels a latent'),
        ({'widths': (8, 10)}, 'tokenizer.widths has 10, which tokenizer.groups, 4'),
        ({'attention': (3,)}, r'tokenizer.attention is \(3,\); the levels are 0 to 2'),
        ({'decoding': 'tiled', 'tile': 8}, 'tokenizer.tile is 8 and overlap 0.25'),
        ({'mean': (1.0,)}, 'tokenizer.mean and tokenizer.deviation are given together'),
    ],
)
def test_settings_that_do_not_fit(settings, said):
    with pytest.raises(ValueError, match=said):
        kl_vae.build(**{'resolution': 24, **cases.TINY, **settings})


def test_sides_that_do_not_divide():
    with pytest.raises(ValueError, match='an image of 24 x 30 has no latents'):
        tokenizer().latent_of(24, 30)
