"""The files of LlamaGen as its authors publish them: names, shapes, how they lie in a file, what is left."""

import jax
import numpy as np
import pytest
from golden import llamagen_cases as cases

from jaxgen.models import llamagen
from jaxgen.weights import llamagen as llamagen_names
from jaxgen.weights import names, published

BLOCK = (
    *('attention.wqkv', 'attention.wo', 'feed_forward.w1', 'feed_forward.w2', 'feed_forward.w3'),
    *('attention_norm', 'ffn_norm'),
)
OUTSIDE = {'tok_embeddings.weight', 'norm.weight', 'output.weight'}


@pytest.mark.parametrize('size', ['B', 'XL'])
def test_published_names_and_shapes(size):
    captions = size == 'XL'  # as t2i_XL_stage1_256.pt, the other as c2i_B_256.pt
    network = llamagen.build(size=size, caption_width=2048 if captions else None)
    params = jax.eval_shape(network.init, jax.random.key(0), *llamagen_names.inputs(network))['params']
    table = llamagen_names.layouts(network)['authors']
    shapes = {entry.name: entry.shape for entry in names.entries(table, params)}
    blocks = {f'layers.{i}.{name}.weight' for i in range(network.depth) for name in BLOCK}
    told = {'cap_proj.fc1.weight', 'cap_proj.fc2.weight', 'uncond_embedding'}
    told = told if captions else {'embedding_table.weight'}
    assert set(shapes) == OUTSIDE | blocks | {f'cls_embedding.{name}' for name in told}
    width, hidden = (1280, 3584) if captions else (768, 2048)
    assert shapes['layers.3.attention.wqkv.weight'] == (3 * width, width)
    assert shapes['layers.3.feed_forward.w1.weight'] == (hidden, width)
    assert shapes['layers.3.feed_forward.w2.weight'] == (width, hidden)
    assert shapes['tok_embeddings.weight'] == shapes['output.weight'] == (16384, width)
    if captions:
        assert shapes['cls_embedding.uncond_embedding'] == (120, 2048)
        assert shapes['cls_embedding.cap_proj.fc1.weight'] == (1280, 2048)
    else:
        assert shapes['cls_embedding.embedding_table.weight'] == (1001, 768)


@pytest.mark.parametrize('case', list(cases.CASES))
def test_a_file_is_read_without_its_table_of_rotations(tmp_path, case):
    torch = pytest.importorskip('torch')
    network = llamagen.build(**cases.CASES[case])
    params = cases.parameters(network)
    arrays = names.to_published(llamagen_names.layouts(network)['authors'], params)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    tensors['freqs_cis'] = torch.zeros(10, 4, 2)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    for held in ({'model': tensors, 'steps': 7}, tensors):  # as DDP and as FSDP leave it
        torch.save(held, tmp_path / 'network.pt')
        found = published.load(network, str(tmp_path / 'network.pt'), like)
        jax.tree.map(np.testing.assert_array_equal, found, params)
