"""The published layouts and configs of the autoencoders."""

import jax
import numpy as np
import pytest
from golden import make_kl_vae as cases

from jaxgen.tokenizers import kl_vae, va_vae
from jaxgen.weights import kl_vae as family
from jaxgen.weights import va_vae as va_family
from jaxgen.weights.names import to_jaxgen, to_published


@pytest.fixture(scope='module')
def network():
    return cases.network(cases.TINY)


@pytest.fixture(scope='module')
def params(network):
    return cases.parameters(network, family.layouts(network)['diffusers'])


@pytest.mark.parametrize('layout', ['diffusers', 'compvis', 'stable_diffusion'])
def test_round_trip(network, params, layout):
    table = family.layouts(network)[layout]
    published = to_published(table, params)
    again = to_jaxgen(table, published, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert set(to_published(table, again)) == set(published)


def test_compvis_names(network, params):
    published = to_published(family.layouts(network)['compvis'], params)
    # As `state_dict` of the authors' class says, at these widths.
    shapes = {
        'encoder.conv_in.weight': (8, 3, 3, 3),
        'encoder.down.1.attn.0.q.weight': (8, 8, 1, 1),
        'encoder.down.2.block.0.nin_shortcut.weight': (16, 8, 1, 1),
        'encoder.down.1.downsample.conv.bias': (8,),
        'encoder.mid.attn_1.proj_out.weight': (16, 16, 1, 1),
        'encoder.mid.block_2.conv2.weight': (16, 16, 3, 3),
        'encoder.norm_out.weight': (16,),
        'decoder.up.2.block.1.conv1.weight': (16, 16, 3, 3),
        'decoder.up.1.block.0.nin_shortcut.weight': (8, 16, 1, 1),
        'decoder.up.1.upsample.conv.weight': (8, 8, 3, 3),
        'decoder.conv_out.weight': (3, 8, 3, 3),
        'quant_conv.weight': (8, 8, 1, 1),
    }
    assert {name: published[name].shape for name in shapes} == shapes
    of_training = {'loss.logvar': np.zeros(()), 'loss.discriminator.main.0.weight': np.zeros((1, 3, 4, 4))}
    to_jaxgen(family.layouts(network)['compvis'], published | of_training, params)


def test_whole_stable_diffusion_checkpoint(network, params):
    table = family.layouts(network)['stable_diffusion']
    others = ('model.diffusion_model.out.0.weight', 'cond_stage_model.x', 'sqrt_alphas_cumprod', 'betas')
    published = to_published(table, params) | {name: np.zeros(3) for name in others}
    assert 'first_stage_model.encoder.conv_in.weight' in published
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(table, published, params), params)


def test_attention_names_of_2022(network, params):
    table = family.layouts(network)['diffusers']
    old = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}

    def renamed(name):
        part = next((part for part in old if 'attentions' in name and f'.{part}.' in name), '')
        return name.replace(f'.{part}.', f'.{old[part]}.') if part else name

    published = {renamed(name): array for name, array in to_published(table, params).items()}
    assert sum('proj_attn' in name for name in published) == 2 * 5
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(table, published, params), params)


PUBLISHED = {
    # What the config.json of each says beyond the classes' defaults.
    'stable_diffusion_1': {'latent_channels': 4, 'sample_size': 512},
    'sdxl': {'latent_channels': 4, 'sample_size': 1024, 'scaling_factor': 0.13025, 'force_upcast': True},
    'flux': {
        'latent_channels': 16,
        'sample_size': 1024,
        'scaling_factor': 0.3611,
        'shift_factor': 0.1159,
        'use_quant_conv': False,
        'use_post_quant_conv': False,
        'latents_mean': None,
        'latents_std': None,
        'mid_block_add_attention': True,
    },
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_configs(name):
    published = {
        '_class_name': 'AutoencoderKL',
        '_diffusers_version': '0.30.0',
        'act_fn': 'silu',
        'block_out_channels': [128, 256, 512, 512],
        'down_block_types': ['DownEncoderBlock2D'] * 4,
        'up_block_types': ['UpDecoderBlock2D'] * 4,
        'in_channels': 3,
        'out_channels': 3,
        'layers_per_block': 2,
        'norm_num_groups': 32,
        **PUBLISHED[name],
    }
    arguments = family.from_config(published)
    network = kl_vae.build(**arguments).network
    written = family.to_config(network)
    assert {key: written[key] for key in published if key in written} == {
        key: value for key, value in published.items() if not key.startswith('_diffusers')
    }
    assert family.from_config(written) == arguments
    assert network.shift == PUBLISHED[name].get('shift_factor')
    assert network.scale == PUBLISHED[name].get('scaling_factor', 0.18215)


@pytest.mark.parity
def test_configs_are_those_of_diffusers():
    diffusers = pytest.importorskip('diffusers')
    network = cases.network(cases.TINY | {'mean': (0.0,) * 4, 'deviation': (1.0,) * 4})
    written = family.to_config(network)
    theirs = dict(diffusers.AutoencoderKL.from_config(written).config)
    assert set(written) == {key for key in theirs if not key.startswith('_')} | {'_class_name'}
    assert family.from_config(theirs) == family.from_config(written)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'act_fn': 'relu'}, 'act_fn'),
        ({'in_channels': 4}, 'in_channels'),
        ({'down_block_types': ['DownBlock']}, 'DownBlock'),
        ({'down_block_types': ['AttnDownEncoderBlock2D']}, 'each level is of one kind'),
        ({'block_out_channels': [32, 64]}, 'at 2 levels'),
        ({'tiles': 3}, 'tiles=3'),
    ],
)
def test_what_is_not_implemented_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        family.from_config({'_class_name': 'AutoencoderKL', **change})


def test_va_vae_settings_and_layout():
    network = va_vae.build().network
    written = va_family.to_config(network)
    assert (written['ch'], written['ch_mult'], written['attn_resolutions']) == (128, [1, 1, 2, 2, 4], [16])
    assert va_vae.build(**va_family.from_config(written)).network == network

    network = va_vae.build(widths=(32, 64), blocks=1, channels=2, attention=()).network
    table = va_family.layouts(network)['authors']
    like = jax.eval_shape(network.init, jax.random.key(0), *va_family.inputs(network))['params']
    params = jax.tree.map(lambda leaf: np.random.RandomState(0).randn(*leaf.shape).astype(np.float32), like)
    published = to_published(table, params)
    assert published['mean'].shape == published['std'].shape == (1, 2, 1, 1)
    kept_by_training = {'foundation_model.model.cls_token': np.zeros(2), 'linear_proj.weight': np.zeros(2)}
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(table, published | kept_by_training, like), params)
    without = {name: array for name, array in published.items() if name not in ('mean', 'std')}
    with pytest.raises(ValueError, match='missing: mean'):
        to_jaxgen(table, without, like)
