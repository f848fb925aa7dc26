"""Conditioners: the host half is plain arrays, the device half embeds them, and both refuse what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.conditioning import captions, labels
from jaxgen.data import shapes_scene


def test_labels_out_of_range_are_refused():
    conditioner = labels.build(classes=3)
    assert conditioner.arrays([{'label': 2}])['label'].tolist() == [2]
    with pytest.raises(ValueError, match='label 3 does not exist'):
        conditioner.arrays([{'label': 3}])
    with pytest.raises(ValueError, match='is no label'):
        conditioner.example('a red circle')
    assert conditioner.example(' 2 ') == {'label': 2} and conditioner.describe({'label': 2}) == 'class 2'


def test_labels_have_names_where_the_data_say_them():
    conditioner = labels.build(classes=2, label_names=('a cat', 'a dog'))
    assert conditioner.example('a dog') == conditioner.example('1') == {'label': 1}
    assert conditioner.describe({'label': np.int32(1)}) == 'a dog'
    with pytest.raises(ValueError, match="from 0 to 1, or their names, such as 'a dog'"):
        conditioner.example('a cow')


def test_no_two_words_of_the_shapes_share_an_id():
    conditioner = captions.build()
    words = set()
    for index in range(2000):
        scene = shapes_scene.draw_scene(np.random.default_rng(index), 'train', 1 + index % 3)
        words |= set(
            captions.WORD.findall(shapes_scene.caption(scene, index % shapes_scene.WORDINGS).lower())
        )
    ids = {word: conditioner.ids(word)[0] for word in words}
    assert len(set(ids.values())) == len(words) > 25
    assert all(0 < number < conditioner.vocabulary for number in ids.values())


def test_the_longest_caption_of_the_shapes_is_not_cut():
    conditioner = captions.build()
    longest = max(
        len(conditioner.ids(shapes_scene.caption(scene, wording)))
        for index in range(300)
        for wording in range(shapes_scene.WORDINGS)
        for scene in [shapes_scene.draw_scene(np.random.default_rng(index), 'train', 3)]
    )
    assert longest <= conditioner.length


@pytest.mark.parametrize('tokens', ['words', 'bytes'])
def test_padding_changes_nothing(tokens):
    short, long = (captions.build(tokens, 512, length, width=32, depth=2, heads=2) for length in (24, 40))
    examples = [{'caption': 'a red circle'}, {'caption': 'two, 2!'}]
    arrays = {
        name: jax.tree.map(jnp.asarray, one.arrays(examples))
        for name, one in {'short': short, 'long': long}.items()
    }
    params = long.init(jax.random.key(0), arrays['long'])
    cut = jax.tree.map(lambda a: a[:24] if a.shape[0] == 40 else a, params)
    drop = jnp.zeros(2, bool)
    a = short.embed(cut, arrays['short'], drop, None)
    b = long.embed(params, arrays['long'], drop, None)
    mask = np.asarray(a['text_mask'])
    np.testing.assert_allclose(np.asarray(a['text'])[mask], np.asarray(b['text'])[:, :24][mask], atol=1e-5)


def test_sizes_come_from_the_picture_or_the_request():
    conditioner = captions.build(sizes=True, width=32, heads=2)
    image = np.zeros((20, 10, 3), np.uint8)
    arrays = conditioner.arrays([{'caption': 'a', 'image': image}, {'caption': 'b', 'size': (8, 16)}])
    assert arrays['size'].tolist() == [[20, 10], [8, 16]] and arrays['aspect'].tolist() == [[2.0], [0.5]]
