"""Generators' families: published configs make the published networks, which make such configs again."""

import math

import jax
import pytest

from jaxgen.models import dit, lightning_dit, pixart
from jaxgen.weights import dit as dit_family
from jaxgen.weights import lightning_dit as lightning_dit_family
from jaxgen.weights import names, published
from jaxgen.weights import pixart as pixart_family

# As in the folders of facebook/DiT-XL-2 and PixArt-alpha/PixArt-XL-2.
COMMON = {
    '_class_name': 'Transformer2DModel',
    'activation_fn': 'gelu-approximate',
    'attention_bias': True,
    'attention_head_dim': 72,
    'dropout': 0.0,
    'in_channels': 4,
    'norm_elementwise_affine': False,
    'norm_num_groups': 32,
    'num_attention_heads': 16,
    'num_embeds_ada_norm': 1000,
    'num_layers': 28,
    'num_vector_embeds': None,
    'only_cross_attention': False,
    'out_channels': 8,
    'patch_size': 2,
    'upcast_attention': False,
    'use_linear_projection': False,
}
DIT = COMMON | {
    '_diffusers_version': '0.12.0.dev0',
    'norm_type': 'ada_norm_zero',
    'cross_attention_dim': None,
    'sample_size': 32,
}
ALPHA = COMMON | {
    '_diffusers_version': '0.22.0.dev0',
    'norm_type': 'ada_norm_single',
    'norm_eps': 1e-6,
    'attention_type': 'default',
    'double_self_attention': False,
    'caption_channels': 4096,
    'cross_attention_dim': 1152,
    'sample_size': 64,
}
SIGMA = ALPHA | {'use_additional_conditions': False}
PUBLISHED = {
    'DiT-XL-2-256': DIT,
    'DiT-XL-2-512': DIT | {'sample_size': 64},
    'PixArt-XL-2-256x256': ALPHA | {'sample_size': 32},
    'PixArt-XL-2-512x512': ALPHA,
    'PixArt-XL-2-1024-MS': ALPHA | {'sample_size': 128},
    'PixArt-Sigma-XL-2-256x256': SIGMA | {'sample_size': 32, 'interpolation_scale': 0.5},
    'PixArt-Sigma-XL-2-512-MS': SIGMA | {'sample_size': 64, 'interpolation_scale': 1},
    'PixArt-Sigma-XL-2-1024-MS': SIGMA | {'sample_size': 128, 'interpolation_scale': 2},
    'PixArt-Sigma-XL-2-2K-MS': SIGMA | {'sample_size': 256, 'interpolation_scale': 4},
}
# Parameters as diffusers counts them, without the null caption and with one embedder of DiT a block.
COUNTS = {'DiT-XL-2': 749_826_464, 'PixArt': 610_856_096, 'PixArt-XL-2-1024': 611_349_152}
FAMILIES = {dit_family: dit, pixart_family: pixart}


def network_of(config):
    family, arguments = published.family_for(config)
    return family, FAMILIES[family].build(**arguments)


def shapes_of(family, network, layout):
    """Names and shapes in a published layout, from shapes alone."""
    params = jax.eval_shape(network.init, jax.random.key(0), *family.inputs(network))['params']
    return {entry.name: entry.shape for entry in names.entries(family.layouts(network)[layout], params)}


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_configs(name):
    family, network = network_of(PUBLISHED[name])
    assert family is (dit_family if name.startswith('DiT') else pixart_family)
    side = PUBLISHED[name]['sample_size']
    assert network.base_size == side // 2 and network.learned_variance
    if family is pixart_family:
        scales = {'256x256': 0.5, '512-MS': 1, '1024-MS': 2, '2K-MS': 4}
        sigma = name.partition('Sigma-XL-2-')[2]
        assert network.interpolation == (scales[sigma] if sigma else {32: 1, 64: 1, 128: 2}[side])
        assert network.micro_conditioning == (name == 'PixArt-XL-2-1024-MS')
    count = next(COUNTS[start] for start in sorted(COUNTS, reverse=True) if name.startswith(start))
    shapes = shapes_of(family, network, 'diffusers')
    assert sum(map(math.prod, shapes.values())) == count


@pytest.mark.parametrize('name', PUBLISHED)
def test_written_configs_make_the_same_network(name):
    family, network = network_of(PUBLISHED[name])
    config = family.to_config(network)
    again_family, again = network_of(config)
    assert again_family is family and again == network and family.to_config(again) == config
    assert config['_class_name'] == family.CLASSES[0]
    wanted = {key: value for key, value in PUBLISHED[name].items() if key in config} | config
    assert config | {'norm_eps': wanted['norm_eps']} == wanted


@pytest.mark.parity
@pytest.mark.parametrize('name', ['DiT-XL-2-256', 'PixArt-XL-2-1024-MS', 'PixArt-Sigma-XL-2-2K-MS'])
def test_names_and_shapes_equal_diffusers(name):
    torch = pytest.importorskip('torch')
    diffusers = pytest.importorskip('diffusers')
    family, network = network_of(PUBLISHED[name])
    config = family.to_config(network)
    with torch.device('meta'):
        theirs = getattr(diffusers, config['_class_name']).from_config(config)
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    ours = shapes_of(family, network, 'diffusers')
    assert ours == {key: shape for key, shape in expected.items() if key != 'pos_embed.pos_embed'}


@pytest.mark.parametrize(
    ('config', 'said'),
    [
        (DIT | {'norm_type': 'layer_norm'}, "norm_type='layer_norm' is not implemented"),
        ({'_class_name': 'Transformer2DModel'}, "norm_type='layer_norm' is not implemented"),
        (DIT | {'upcast_attention': True}, 'upcast_attention'),
        (DIT | {'qk_norm': 'rms'}, "option qk_norm='rms'"),
        (DIT | {'out_channels': 5}, 'out_channels=5'),
        (ALPHA | {'norm_eps': 1e-5}, 'norm_eps=1e-05'),
        (ALPHA | {'caption_channels': None}, 'caption_channels None'),
        (ALPHA | {'attention_type': 'gated'}, "attention_type='gated'"),
    ],
)
def test_other_configs_are_refused(config, said):
    with pytest.raises(ValueError, match=said):
        network_of(config)


def test_networks_that_diffusers_has_not_are_refused():
    with pytest.raises(ValueError, match='base_size'):
        dit_family.to_config(dit.build(frequency_shift=1))
    with pytest.raises(ValueError, match='frequency_shift=1'):
        dit_family.to_config(dit.build(base_size=16))
    with pytest.raises(ValueError, match='SiT'):
        dit_family.to_config(dit.build(learned_variance=False, discard_variance=True))
    compressed = pixart.build(compress_ratio=2, compress_layers=(14,))
    assert list(pixart_family.layouts(compressed)) == ['authors']
    with pytest.raises(ValueError, match='compressed'):
        pixart_family.to_config(compressed)
    with pytest.raises(ValueError, match='authors'):
        lightning_dit_family.to_config(lightning_dit.build())
    assert published.family_of(lightning_dit.build()) is lightning_dit_family
