"""The files of MaskGIT and MaskBit as their authors publish them: names, shapes, and what is stored twice."""

import jax
import numpy as np
import pytest
from golden import make_maskgit as cases

from jaxgen.models import maskbit, maskgit
from jaxgen.weights import maskbit as maskbit_names
from jaxgen.weights import maskgit as maskgit_names
from jaxgen.weights import names, published, safetensors


def shapes_of(network, table):
    params = jax.eval_shape(network.init, jax.random.key(0), *maskgit_names.inputs(network))['params']
    return {entry.name: entry.shape for entry in names.entries(table, params)}


def test_published_names_and_shapes():
    shapes = shapes_of(maskgit.build(size='small', scales=((24, 24),)), maskgit_names.authors())
    block = {f'attn.w{part}.weight' for part in 'qkvo'} | {f'ff.w{part}.weight' for part in '123'}
    block |= {'mlp.1.weight', 'mlp.1.bias', 'ln1.weight', 'ln2.weight'}
    outside = {f'{name}.weight' for name in ('cls_emb', 'tok_emb', 'pos_emb', 'reg_tokens')}
    outside |= {f'last_norm.{name}' for name in ('norm_final.weight', 'norm_final.bias')}
    outside |= {'last_norm.mlp.1.weight', 'last_norm.mlp.1.bias', 'head.bias'}
    layers = {f'transformer.layers.{i}.{name}' for i in range(12) for name in block}
    assert set(shapes) == outside | layers
    assert shapes['tok_emb.weight'] == (16_385, 512) and shapes['pos_emb.weight'] == (576, 512)
    assert shapes['transformer.layers.3.attn.wq.weight'] == (510, 512)  # six heads of 85
    assert shapes['transformer.layers.3.attn.wo.weight'] == (512, 510)
    assert shapes['transformer.layers.3.ff.w1.weight'] == (1536, 512)
    assert shapes['transformer.layers.3.mlp.1.weight'] == (3072, 512)

    shapes = shapes_of(maskbit.build(codes=2**18), maskbit_names.authors(True, 2))
    assert len(shapes) == 12 + 24 * 12
    assert shapes['input_proj.weight'] == (1024, 18) and shapes['prediction_layer.weight'] == (1024, 1024)
    assert shapes['pos_emb'] == (1, 257, 1024)
    assert shapes['transformer.layers.23.0.mha.in_proj_weight'] == (3072, 1024)


def written(path, arrays):
    entries = [
        safetensors.Entry(name, array.shape, array.dtype, lambda array=array: array)
        for name, array in arrays.items()
    ]
    safetensors.write(str(path), entries, {})
    return str(path)


@pytest.mark.parametrize('case', list(cases.CASES))
def test_a_file_is_read(tmp_path, case):
    network, table, params = cases.network(case), cases.table(case), cases.parameters(case)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    arrays = names.to_published(table, params)
    # MaskGIT's head is stored beside the table that it is, MaskBit's powers of two with all else.
    arrays |= (
        {'head.weight': arrays['tok_emb.weight']}
        if case == 'maskgit'
        else {'bits_to_indices': np.array([1, 2, 4], np.int32)}
    )
    path = written(tmp_path / 'network.safetensors', arrays)
    jax.tree.map(np.testing.assert_array_equal, published.load(network, path, like), params)
    if case == 'maskgit':
        path = written(tmp_path / 'other.safetensors', arrays | {'head.weight': 2 * arrays['head.weight']})
        with pytest.raises(ValueError, match='differs from .*, but table is one for all'):
            published.load(network, path, like)
