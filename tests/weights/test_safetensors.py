"""The safetensors format: byte for byte the reference's, whatever is wrong with a file said by name."""

import json
import os
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from memory import anonymous

from jaxgen.weights import safetensors
from jaxgen.weights.safetensors import DTYPES, FORMAT, Entry

SHAPES = {'scalar': (), 'empty': (0, 3), 'row': (5,), 'block': (2, 3, 4)}


def entry(name, array):
    return Entry(name, array.shape, array.dtype, lambda: array)


def every_kind():
    """Each shape in each dtype."""
    return {
        f'{code} {name}': np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
        for code, dtype in DTYPES.items()
        for name, shape in SHAPES.items()
    }


def write(path, arrays, metadata=FORMAT):
    safetensors.write(path, [entry(*item) for item in arrays.items()], metadata)


def same(ours, theirs):
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    return ours.tobytes() == theirs.tobytes()


def test_what_is_written_is_read(tmp_path):
    arrays = every_kind()
    write(tmp_path / 'a.safetensors', arrays)
    read = safetensors.read(tmp_path / 'a.safetensors')
    assert read.keys() == arrays.keys()
    assert all(same(read[name], arrays[name]) for name in arrays)
    assert not any(array.flags.writeable or array.flags.owndata for array in read.values())
    assert os.listdir(tmp_path) == ['a.safetensors']


@pytest.mark.parity
def test_equals_the_reference_byte_for_byte(tmp_path):
    torch = pytest.importorskip('safetensors.torch')
    arrays = every_kind()
    ours, theirs = tmp_path / 'ours.safetensors', tmp_path / 'theirs.safetensors'
    write(ours, arrays)
    loaded = torch.load_file(ours)
    assert loaded.keys() == arrays.keys()
    torch.save_file(loaded, theirs, FORMAT)
    assert ours.read_bytes() == theirs.read_bytes()
    read = safetensors.read(theirs)
    assert all(same(read[name], arrays[name]) for name in arrays)


def test_arrays_that_do_not_lie_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, 'CHUNK', 64)
    base = np.arange(60, dtype=np.float32).reshape(10, 6)
    arrays = {
        'turned': base.T,
        'part': base[::3, 1::2],
        'back': base[::-1],
        'half': base.astype(np.float16).T,
    }
    write(tmp_path / 'a.safetensors', arrays)
    read = safetensors.read(tmp_path / 'a.safetensors')
    assert all(np.array_equal(read[name], arrays[name]) for name in arrays)


def file_with(header, data=b'', length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text) if length is None else length) + text + data


def about(dtype='F32', shape=(2,), offsets=(0, 8)):
    return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


DEFECTS = {
    'nothing': (b'', 'empty'),
    'a stump': (b'\1\0', 'header would be 1 bytes'),
    'a header longer than the file': (file_with({}, length=1000), '1000 bytes long, but the file has'),
    'an endless header': (file_with({}, length=2**63), 'above the limit'),
    'no JSON': (file_with(b'{"a"'), 'not a whole'),
    'no text': (file_with(b'\xff\xfe{}'), 'decode'),
    'no object': (file_with([1]), 'is a list'),
    'deep': (file_with(b'[' * 200_000), 'nested too deeply'),
    'a name twice': (file_with(b'{"a":1,"a":2}'), 'twice'),
    'odd notes': (file_with({'__metadata__': {'a': 1}}), 'strings'),
    'no entry': (file_with({'a': 3}), "'a' needs"),
    'a key too many': (file_with({'a': {**about(), 'x': 1}}, bytes(8)), "'a' needs"),
    'an unknown dtype': (file_with({'a': about('F4')}, bytes(8)), "dtype 'F4'"),
    'a dtype that is none': (file_with({'a': about({})}, bytes(8)), 'dtype {}'),
    'a negative size': (file_with({'a': about(shape=(-2,))}, bytes(8)), 'shape'),
    'half a row': (file_with({'a': about(shape=(0.5,))}, bytes(8)), 'shape'),
    'a size that is true': (file_with({'a': about(shape=(True, 2))}, bytes(8)), 'shape'),
    'many dimensions': (file_with({'a': about(shape=(1,) * 65 + (2,))}, bytes(8)), 'shape'),
    'a shape beyond numpy': (file_with({'a': about(shape=(0, 2**62, 2**62), offsets=(0, 0))}), 'too big'),
    'more than its bytes': (file_with({'a': about(shape=(2**40,))}, bytes(8)), 'has 8 bytes'),
    'a product that wraps': (file_with({'a': about(shape=(2**32, 2**32), offsets=(0, 0))}), 'has 0 bytes'),
    'three offsets': (file_with({'a': about(offsets=(0, 8, 8))}, bytes(8)), 'data_offsets'),
    'offsets turned': (file_with({'a': about(offsets=(8, 0))}, bytes(8)), 'has -8 bytes'),
    'a hole': (file_with({'a': about(), 'b': about(offsets=(9, 17))}, bytes(17)), "'b' leaves a hole"),
    'an overlap': (file_with({'a': about(), 'b': about(offsets=(4, 12))}, bytes(12)), "'b' overlaps"),
    'a tail': (file_with({'a': about()}, bytes(9)), '9 follow'),
    'a file cut short': (file_with({'a': about()}, bytes(7)), '7 follow'),
}


@pytest.mark.parametrize('defect', DEFECTS)
def test_defects_are_named(tmp_path, defect):
    content, said = DEFECTS[defect]
    path = tmp_path / 'a.safetensors'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        safetensors.read(path)
    assert str(path) in str(error.value)


def test_writing_needs_one_tensor_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, 'CHUNK', 2**16)
    size = 2**20  # bytes
    made = []

    def make(number):
        made.append(number)
        array = np.full((size // 8, 2), number, np.float32)
        return array.T if number % 2 else array.reshape(2, -1)  # half of them have to be put in order

    entries = [Entry(f'{i}', (2, size // 8), np.dtype(np.float32), lambda i=i: make(i)) for i in range(8)]
    tracemalloc.start()
    safetensors.write_sharded(tmp_path, 'model', entries, limit=5 * size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made == list(range(8)) and peak < 1.6 * size, peak / size


def test_a_failure_leaves_what_was_there(tmp_path):
    write(tmp_path / 'a.safetensors', {'a': np.zeros(3)})
    before = (tmp_path / 'a.safetensors').read_bytes()

    def fail():
        raise RuntimeError('no device')

    good, bad = entry('a', np.ones(3)), Entry('b', (3,), np.dtype(np.float64), fail)
    with pytest.raises(RuntimeError):
        safetensors.write(tmp_path / 'a.safetensors', [good, bad])
    assert os.listdir(tmp_path) == ['a.safetensors']
    assert (tmp_path / 'a.safetensors').read_bytes() == before
    with pytest.raises(RuntimeError):
        safetensors.write_sharded(tmp_path / 'new', 'model', [good, bad], limit=24)
    assert os.listdir(tmp_path / 'new') == []


def test_two_may_write_the_same_file(tmp_path):
    path = tmp_path / 'a.safetensors'

    def meanwhile():
        safetensors.write(path, [entry('a', np.zeros(3))])
        return np.ones(3)

    safetensors.write(path, [Entry('a', (3,), np.dtype(np.float64), meanwhile)])
    assert safetensors.read(path)['a'].tolist() == [1, 1, 1]
    assert os.listdir(tmp_path) == ['a.safetensors']


def test_what_cannot_be_written_is_refused(tmp_path):
    wrong = {
        'something else': [entry('a', np.ones(3)), entry('a', np.ones(2))],
        'already': [entry('__metadata__', np.ones(3))],
        'does not have': [entry('a', np.ones(3, np.complex128))],
        'was to be': [Entry('a', (2,), np.dtype(np.float32), lambda: np.ones(3, np.float32))],
    }
    for said, entries in wrong.items():
        with pytest.raises(ValueError, match=said):
            safetensors.write(tmp_path / 'a.safetensors', entries)
    assert os.listdir(tmp_path) == []


def test_shards_and_their_index(tmp_path):
    arrays = {name: np.zeros(size, np.uint8) for name, size in zip('abcdef', (60, 30, 60, 20, 200, 20))}
    entries = [entry(*item) for item in arrays.items()]
    files = safetensors.write_sharded(tmp_path, 'model', entries, limit=100)
    assert sorted(files) == sorted(os.listdir(tmp_path))
    index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
    assert index['metadata'] == {'total_size': 390}
    shards = [sorted(safetensors.read(tmp_path / name)) for name in files[:-1]]
    assert shards == [['a', 'b'], ['e'], ['c', 'd', 'f']]
    assert all(name in safetensors.read(tmp_path / file) for name, file in index['weight_map'].items())
    with pytest.raises(ValueError, match='is there already'):
        safetensors.write_sharded(tmp_path, 'model', entries, limit=1000)
    assert safetensors.write_sharded(tmp_path, 'other', entries, limit=1000) == ('other.safetensors',)


@pytest.mark.parity
@pytest.mark.parametrize('limit', [10**9, 20_000])
def test_from_pretrained_reads_our_files(tmp_path, limit):
    torch, diffusers = pytest.importorskip('torch'), pytest.importorskip('diffusers')
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=4, num_embeds_ada_norm=5
    )
    model.save_config(tmp_path)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    entries = [entry(*item) for item in state.items()]
    files = safetensors.write_sharded(tmp_path, 'diffusion_pytorch_model', entries, limit)
    assert (len(files) > 3) == (limit < 10**6)
    loaded = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


@pytest.mark.parity
def test_transformers_reads_our_shards(tmp_path):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    config = transformers.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    model = transformers.T5EncoderModel(config)
    config.save_pretrained(tmp_path)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    entries = [entry(*item) for item in state.items()]
    assert len(safetensors.write_sharded(tmp_path, 'model', entries, limit=6_000)) > 2
    loaded = transformers.T5EncoderModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_reading_takes_no_memory(tmp_path):
    path, size = tmp_path / 'large.safetensors', 200 * 2**20
    header = {f'{i}': about('BF16', (size // 8,), (i * size // 4, (i + 1) * size // 4)) for i in range(4)}
    path.write_bytes(file_with(header))
    os.truncate(path, path.stat().st_size + size)
    before = anonymous()
    arrays = safetensors.read(path)
    assert anonymous() - before < 2**20 * 5
    assert arrays['3'].dtype == ml_dtypes.bfloat16 and float(arrays['3'][-1]) == 0
    assert anonymous() - before < 2**20 * 5
