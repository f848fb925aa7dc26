"""Name maps: both ways, every published name used, and errors that name everything at once."""

import jax
import numpy as np
import pytest
from golden import cases, seeded

from jaxgen.layers.stack import recut
from jaxgen.weights import dit as dit_names
from jaxgen.weights import names
from jaxgen.weights import pixart as pixart_names
from jaxgen.weights.names import to_jaxgen, to_published

CASES = {
    'dit': ('dit', cases.DIT, dit_names),
    'pixart': ('pixart', cases.PIXART | {'micro_conditioning': True}, pixart_names),
    'compressed': ('pixart', cases.COMPRESSED, pixart_names),
}


def tree_of(case):
    family, settings, _ = CASES[case]
    network, table = cases.build(family, settings)
    grid, condition = {
        'dit': (cases.DIT_GRID, cases.dit_condition()),
        'pixart': (cases.PIXART_GRID, cases.pixart_condition()),
    }[family]
    abstract = jax.eval_shape(network.init, jax.random.key(0), cases.image(grid), cases.TIMES, condition)[
        'params'
    ]
    return table, jax.tree.map(lambda leaf: seeded.normal(str(leaf.shape), leaf.shape), abstract)


@pytest.mark.parametrize('case', CASES)
def test_round_trip(case):
    table, tree = tree_of(case)
    published = to_published(table, tree)
    for back in (to_jaxgen(table, published), to_jaxgen(table, published, jax.eval_shape(lambda: tree))):
        jax.tree.map(np.testing.assert_array_equal, back, tree)
    again = to_published(table, back)
    assert again.keys() == published.keys()
    assert all(np.array_equal(again[name], published[name]) for name in published)
    assert sum(a.size for a in published.values()) == sum(a.size for a in jax.tree.leaves(tree))


@pytest.mark.parametrize('case', ['dit', 'pixart'])
def test_round_trip_of_diffusers_names(case):
    _, tree = tree_of(case)
    table = CASES[case][2].diffusers(2)
    published = to_published(table, tree)
    back = to_jaxgen(table, published, tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    if case == 'dit':  # one embedder here, a copy in every block there
        name = 'transformer_blocks.{}.norm1.emb.class_embedder.embedding_table.weight'
        assert all(np.array_equal(published[name.format(i)], tree['label']['table']) for i in range(3))
        published[name.format(1)] = published[name.format(1)] + 1
        with pytest.raises(ValueError, match='label/table is one for all'):
            to_jaxgen(table, published)
    else:
        with pytest.raises(ValueError, match="no 'null_text'"):
            to_jaxgen(table, published, jax.eval_shape(lambda: tree))


def test_published_layout_in_numbers():
    table, tree = tree_of('compressed')
    published, layers = to_published(table, tree), tree['blocks']['stack']
    qkv = published['blocks.2.attn.qkv.weight']
    np.testing.assert_array_equal(qkv[24:48].T, layers['1']['attention']['key']['kernel'][1])
    patch = published['x_embedder.proj.weight']
    assert patch.shape == (24, 4, 2, 2)
    kernel = tree['patch']['projection']['kernel'].reshape(2, 2, 4, 24)
    assert patch[5, 3, 1, 0] == kernel[1, 0, 3, 5]
    assert (
        published['blocks.1.attn.sr.weight'][7, 0, 1, 0]
        == layers['1']['attention']['compress']['kernel'][0, 1, 0, 7]
    )
    assert 'blocks.0.attn.sr.weight' not in published


def test_another_cut_of_the_layers():
    table, tree = tree_of('dit')
    cut = recut(tree, (1, 2))
    published = to_published(table, tree)
    assert all(np.array_equal(a, published[name]) for name, a in to_published(table, cut).items())
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(table, published, cut), cut)
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(table, to_published(table, cut)), tree)


def test_the_position_table_is_ignored():
    table, tree = tree_of('dit')
    published = to_published(table, tree) | {'pos_embed': np.zeros((1, 16, 24))}
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(table, published, tree), tree)


@pytest.mark.parametrize('with_like', [True, False])
def test_all_faults_are_reported_at_once(with_like):
    table, tree = tree_of('dit')
    published = to_published(table, tree)
    published['blocks.1.mlp.fc1.wieght'] = published.pop('blocks.1.mlp.fc1.weight')
    del published['final_layer.linear.bias']
    published['t_embedder.mlp.0.bias'] = np.zeros(7, np.float32)
    published['blocks.0.attn.qkv.bias'] = np.zeros(7, np.float32)
    with pytest.raises(ValueError) as error:
        to_jaxgen(table, published, tree if with_like else None)
    message = str(error.value)
    assert 'missing: blocks.1.mlp.fc1.weight (nearest there: blocks.1.mlp.fc1.wieght)' in message
    assert 'unexpected: blocks.1.mlp.fc1.wieght (nearest wanted: blocks.1.mlp.fc1.weight)' in message
    assert 'missing: final_layer.linear.bias' in message
    assert 'blocks.0.attn.qkv.bias of shape (7,)' in message
    if with_like:
        assert "t_embedder.mlp.0.bias: becomes (7,) but the network's time/up/bias is (24,)" in message


def test_weights_of_another_depth_are_refused():
    table, tree = tree_of('dit')
    published = to_published(table, tree)
    shallow = recut(tree, (2, 1))
    shallow['blocks']['stack'].pop('1')
    with pytest.raises(ValueError, match=r'unexpected: blocks\.2\.'):
        to_jaxgen(table, published, shallow)
    del tree['final']
    with pytest.raises(ValueError, match='final/out/kernel'):
        to_published(table, tree)


def row(theirs, ours, optional=False):
    return names.Row(theirs, (ours,), names.SAME, optional)


def test_stacks_of_unlike_depth_in_one_table():
    table = names.NameMap((row('text.{i}.w', 'text/stack/{i}/w'), row('image.{i}.w', 'image/stack/{i}/w')))
    published = {f'text.{i}.w': np.ones(2) for i in range(2)} | {f'image.{i}.w': np.ones(2) for i in range(3)}
    tree = to_jaxgen(table, published)
    assert {name: tree[name]['stack']['0']['w'].shape for name in tree} == {'text': (2, 2), 'image': (3, 2)}
    assert to_published(table, tree).keys() == published.keys()
    del published['image.1.w']
    with pytest.raises(ValueError, match=r'\n  missing: image\.1\.w$'):
        to_jaxgen(table, published)
    with pytest.raises(ValueError, match=r'missing: image\.\{i\}\.w'):
        to_jaxgen(table, {'text.0.w': np.ones(2)})
    with pytest.raises(ValueError, match=r'missing: image/stack/\{i\}/w'):
        to_published(table, {'text': tree['text']})


def test_alternative_names_are_read_and_the_first_is_written():
    table = names.NameMap((row('shared', 'token'), row('encoder.tokens', 'token'), row('norm', 'norm')))
    token, norm = np.arange(3.0), np.ones(2)
    for given in (['shared'], ['encoder.tokens'], ['encoder.tokens', 'shared']):
        tree = to_jaxgen(table, {name: token for name in given} | {'norm': norm})
        jax.tree.map(np.testing.assert_array_equal, tree, {'token': token, 'norm': norm})
        assert to_published(table, tree).keys() == {'shared', 'norm'}
    with pytest.raises(ValueError, match='encoder.tokens: differs from shared, but token is one for all'):
        to_jaxgen(table, {'shared': token, 'encoder.tokens': token + 1, 'norm': norm})
    with pytest.raises(ValueError, match='missing: shared'):
        to_jaxgen(table, {'norm': norm})


def test_what_is_ignored_is_said_by_patterns():
    table = names.NameMap((row('w', 'w'),), ignored=('loss.*', 'block.{i}.index'))
    published = {'w': np.ones(1), 'loss.net.0.weight': np.ones(1), 'block.12.index': np.ones(1)}
    assert names.match(table, published).ignored == ['loss.net.0.weight', 'block.12.index']
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(table, published), {'w': np.ones(1)})
    with pytest.raises(ValueError, match='unexpected: block.x.index'):
        to_jaxgen(table, published | {'block.x.index': np.ones(1)})


@pytest.mark.parametrize(
    ('transform', 'theirs', 'ours'),
    [
        (names.CONV, (5, 4, 3, 2), (3, 2, 4, 5)),
        (names.CONV_1X1, (5, 4, 1, 1), (4, 5)),
        (names.DEPTHWISE, (5, 1, 3, 2), (3, 2, 5)),
        (names.patch_kernel(2), (5, 4, 2, 2), (16, 5)),
        (names.fused(1, True), (5, 4), (4, 5)),
    ],
)
def test_transforms_and_back(transform, theirs, ours):
    array = seeded.normal('array', theirs)
    (mine,) = transform.to_ours(array)
    np.testing.assert_array_equal(transform.to_theirs(mine), array)
    assert mine.shape == ours
    assert transform.to_ours(names._hollow(theirs))[0].shape == mine.shape
    assert transform.to_theirs(names._hollow(mine.shape)).shape == theirs


def test_an_abstract_tree_tells_names_and_shapes():
    table, tree = tree_of('compressed')
    made = to_published(table, tree)
    told = names.entries(table, jax.eval_shape(lambda: tree))
    assert {entry.name: (entry.shape, entry.dtype) for entry in told} == {
        name: (array.shape, array.dtype) for name, array in made.items()
    }
