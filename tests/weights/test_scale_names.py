"""The files of VAR and FlexVAR as their authors publish them: names, shapes, and what is left out."""

import jax
import numpy as np
import pytest
from golden import make_flexvar, var_cases

from jaxgen.models import var
from jaxgen.weights import flexvar as flexvar_names
from jaxgen.weights import names, published, safetensors
from jaxgen.weights import var as var_names

BLOCK = (
    *('attn.mat_qkv.weight', 'attn.q_bias', 'attn.v_bias', 'attn.scale_mul_1H11', 'attn.proj.weight'),
    *('attn.proj.bias', 'ffn.fc1.weight', 'ffn.fc1.bias', 'ffn.fc2.weight', 'ffn.fc2.bias'),
)
OUTSIDE = {
    *('word_embed.weight', 'word_embed.bias', 'class_emb.weight', 'pos_start', 'pos_1LC', 'lvl_embed.weight'),
    *('head_nm.ada_lin.1.weight', 'head_nm.ada_lin.1.bias', 'head.weight', 'head.bias'),
}


@pytest.mark.parametrize('depth', [16, 36])
def test_published_names_and_shapes(depth):
    shared = depth == 36
    sides = var.SIDES_512 if shared else var.SIDES_256
    network = var.build(depth=depth, shared=shared, scales=var.squares(sides))
    params = jax.eval_shape(network.init, jax.random.key(0), *var_names.inputs(network))['params']
    shapes = {entry.name: entry.shape for entry in names.entries(var_names.authors(shared), params)}
    own = ('ada_gss',) if shared else ('ada_lin.1.weight', 'ada_lin.1.bias')
    blocks = {f'blocks.{i}.{name}' for i in range(depth) for name in (*BLOCK, *own)}
    for_all = {'shared_ada_lin.1.weight', 'shared_ada_lin.1.bias'} if shared else set()
    assert set(shapes) == OUTSIDE | blocks | for_all
    width = 64 * depth
    assert shapes['pos_1LC'] == (1, sum(side**2 for side in sides), width)
    assert shapes['pos_start'] == (1, 1, width) and shapes['lvl_embed.weight'] == (10, width)
    assert shapes['blocks.3.attn.mat_qkv.weight'] == (3 * width, width)
    assert shapes['blocks.3.attn.scale_mul_1H11'] == (1, depth, 1, 1)
    assert shapes[f'blocks.3.{own[0]}'] == ((1, 1, 6, width) if shared else (6 * width, width))
    assert shapes['head.weight'] == (4096, width) and shapes['class_emb.weight'] == (1001, width)


def written(path, table, params, extra):
    arrays = names.to_published(table, params) | extra
    entries = [
        safetensors.Entry(name, array.shape, array.dtype, lambda array=array: array)
        for name, array in arrays.items()
    ]
    safetensors.write(str(path), entries, {})
    return str(path)


@pytest.mark.parametrize('family', ['var', 'flexvar'])
def test_a_file_is_read_without_its_masks(tmp_path, family):
    if family == 'var':
        network, table = var.build(**var_cases.TINY), var_names.authors(False)
        params = var_cases.parameters(network)
    else:
        network, table, params = make_flexvar.network(), flexvar_names.authors(), make_flexvar.parameters()
    masks = {'attn_bias_for_masking': np.zeros((1, 1, 30, 30), np.float32)}
    masks |= {f'blocks.{i}.attn.zero_k_bias': np.zeros(24, np.float32) for i in range(3)}
    path = written(tmp_path / 'network.safetensors', table, params, masks)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    jax.tree.map(np.testing.assert_array_equal, published.load(network, path, like), params)
    path = written(tmp_path / 'other.safetensors', table, params, {'blocks.0.attn.k_bias': np.zeros(24)})
    with pytest.raises(ValueError, match='unexpected: blocks.0.attn.k_bias'):
        published.load(network, path, like)
