"""A cache's records: what was packed is what is read, whatever an example has and lacks."""

import ml_dtypes
import numpy as np
import pytest

from jaxgen.data import cached
from jaxgen.data.shards import Writer, shards, summary

MOMENTS = ('moments', 'float16', (2, 3, 4))
EXAMPLE = {'size': (16, 24), 'label': 7, 'caption': 'ein großer Kreis'}
TEXT = np.arange(15, dtype=np.float32).reshape(3, 5).astype(ml_dtypes.bfloat16)


def moments(variants):
    return np.random.default_rng(variants).normal(size=(variants, 2, 3, 4)).astype(np.float16)


@pytest.mark.parametrize('variants', [1, 2])
@pytest.mark.parametrize('text', [None, TEXT, TEXT[:0]])
@pytest.mark.parametrize('lacking', [(), ('label',), ('caption',), ('label', 'caption')])
def test_record_holds_what_was_packed(variants, text, lacking):
    layout = cached.Layout((MOMENTS,), variants, None if text is None else ('bfloat16', 5))
    example = {name: value for name, value in EXAMPLE.items() if name not in lacking}
    arrays = {'moments': moments(variants), 'text': text}
    record = layout.pack(example, arrays)
    said = len(example.get('caption', '').encode())
    assert len(record) == said + layout.bytes_of(0 if text is None else len(text))
    read = layout.reader('caption' in example, {'null': TEXT})
    for variant in range(variants):
        found = read(record, variant)
        np.testing.assert_array_equal(found.pop('moments'), arrays['moments'][variant])
        assert found.pop('null') is TEXT
        if text is not None:
            assert found['text'].dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(found.pop('text'), text)
        assert found == example


def test_layout_survives_its_manifest():
    for text in (None, ('bfloat16', 5)):
        layout = cached.Layout((MOMENTS, ('image', 'uint8', (4, 4, 3))), 2, text)
        assert cached.layout_of(layout.record()) == layout


def test_shards_share_out_all_examples(tmp_path):
    found = shards(cached.epath.Path(tmp_path), 'train', 10, 4)
    assert [shard.path.name for shard in found][1] == 'train-00001-of-00003.array_record'
    assert [row for shard in found for row in shard.rows] == list(range(10))


def test_shard_is_there_when_it_is_whole(tmp_path):
    wanted = shards(cached.epath.Path(tmp_path), 'train', 5, 3)
    writer = Writer(wanted)
    values = np.random.default_rng(0).normal(size=(5, 6, 2))
    for count, value in enumerate(values, start=1):
        writer.write(bytes([count]) * 50, value.sum(0), (value**2).sum(0), len(value))
        assert [shard.note is not None for shard in wanted] == [count >= 3, count >= 5]
    told = summary(wanted)
    assert told['examples'] == 5 and [name for name, _, _ in told['shards']] == [s.path.name for s in wanted]
    np.testing.assert_allclose(told['mean'], values.mean((0, 1)))
    np.testing.assert_allclose(told['deviation'], values.std((0, 1)))
    wanted[0].path.write_bytes(wanted[0].path.read_bytes()[:-1])
    assert wanted[0].note is None
    with pytest.raises(ValueError, match='train-00000-of-00002.array_record and 0 other'):
        summary(wanted)
