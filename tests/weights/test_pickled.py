"""torch's checkpoints without torch: what is in them, and what they cannot do."""

import io
import operator
import os
import pathlib
import pickle
import shutil
import struct
import zipfile

import checkpoints
import ml_dtypes
import numpy as np
import pytest
from checkpoints import Call, Raw, Tensor, write_legacy, write_zip
from golden import seeded
from golden.seeded import normal
from memory import anonymous

from jaxgen.weights import pickled, unpickle

WRITERS = {'zip': write_zip, 'legacy': write_legacy}
GOLDEN = pathlib.Path(seeded.__file__).parent


def contents():
    """What golden/make_checkpoints.py saved."""
    base = normal('base', (4, 6))
    return {
        'model': {'weight': normal('weight', (2, 3)), 'bias': normal('bias', (2,))},
        'views': {
            'whole': base,
            'turned': base.T,
            'part': base[1:3, ::2],
            'repeated': np.broadcast_to(base[:1], (3, 6)),
        },
        'dtypes': {
            'bfloat16': base.astype(ml_dtypes.bfloat16),
            'float16': base.astype(np.float16),
            'int64': np.arange(5),
            'bool': base > 0,
            'float8': base.astype(ml_dtypes.float8_e4m3fn),
            'scalar': np.float32(2.5),
            'empty': np.zeros((0, 3), np.float32),
        },
        'parameter': base[0],
    }


def agree(ours, theirs):
    """The same tables with the same arrays."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict) and list(ours) == list(theirs)
        for name in theirs:
            agree(ours[name], theirs[name])
        return
    theirs = np.asarray(theirs)
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and not ours.flags.writeable
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize('name', ['checkpoint.pt', 'checkpoint_legacy.pt'])
def test_what_torch_saved(name):
    read = pickled.read(GOLDEN / name)
    arrays = contents()
    agree({key: read[key] for key in arrays}, arrays)
    assert read['args'] == {'learning_rate': 1e-4, 'name': 'tiny'}
    assert read['loss'] == 0.25 and read['seen'] == {1, 2}
    assert read['rest'][:7] == [None, True, 2**40, 'text', b'bytes', (1, 2.5), (4, 6)]
    assert [each.name for each in read['rest'][7:]] == ['torch.device', 'torch.float32']
    views = read['views']
    assert np.shares_memory(views['whole'], views['turned']) and np.shares_memory(
        views['whole'], views['part']
    )


@pytest.mark.parity
@pytest.mark.parametrize('zipped', [True, False])
def test_reads_what_torch_saves(tmp_path, zipped):
    torch = pytest.importorskip('torch')
    network = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3)).bfloat16()
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(4, 5, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    network[0].weight.noted = 'on the parameter itself'
    saved = {
        'model': network.state_dict(),
        'parameters': dict(network.named_parameters()),
        'optimizer': optimizer.state_dict(),
        'random': [torch.get_rng_state(), np.random.get_state()],
        'rotary': torch.polar(torch.ones(3), torch.arange(3.0)),
    }
    torch.save(saved, tmp_path / 'a.pt', _use_new_zipfile_serialization=zipped)
    read = pickled.read(tmp_path / 'a.pt')

    def numpy(tensor):
        tensor = tensor.detach()
        return (
            tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            if tensor.dtype == torch.bfloat16
            else tensor.numpy()
        )

    agree(read['model'], {name: numpy(value) for name, value in saved['model'].items()})
    agree(read['parameters'], {name: numpy(value) for name, value in saved['parameters'].items()})
    agree(read['rotary'], numpy(saved['rotary']))
    agree(read['random'][0], numpy(saved['random'][0]))
    agree(read['optimizer']['state'][0]['exp_avg'], numpy(saved['optimizer']['state'][0]['exp_avg']))
    assert read['optimizer']['param_groups'][0]['betas'] == (0.9, 0.999)


@pytest.mark.parametrize('layout', WRITERS)
def test_views_of_one_storage(tmp_path, layout):
    storage = np.arange(24, dtype=np.float32)
    views = {
        'all': Tensor(storage, 0, (4, 6), (6, 1)),
        'turned': Tensor(storage, 2, (3, 4), (1, 6)),
        'last': Tensor(storage, 23, (), ()),
        'empty': Tensor(storage, 24, (0, 5), (5, 1)),
        'repeated': Tensor(storage, 3, (9, 2), (0, 1)),
    }
    WRITERS[layout](tmp_path / 'a.pt', views)
    read = pickled.read(tmp_path / 'a.pt')
    square = storage.reshape(4, 6)
    expected = {
        'all': square,
        'turned': square[:, 2:5].T,
        'last': storage[23],
        'empty': np.zeros((0, 5), np.float32),
        'repeated': np.broadcast_to(storage[3:5], (9, 2)),
    }
    agree(read, expected)
    assert np.shares_memory(read['all'], read['turned'])


def test_of_a_big_endian_machine(tmp_path):
    arrays = {
        str(dtype): np.arange(6).astype(dtype)
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8)
    }
    write_zip(tmp_path / 'a.pt', arrays, order='big')
    agree(pickled.read(tmp_path / 'a.pt'), arrays)


def test_reading_takes_no_memory(tmp_path):
    size = 200 * 2**20
    for layout, write in WRITERS.items():
        assembler = checkpoints.Assembler(layout == 'legacy')
        small = np.zeros(77_777, np.float32)  # a count that stands for another one
        head = assembler.pickle({'a': Tensor(small, 0, small.shape, (1,))})
        large = head.replace(struct.pack('<i', small.size), struct.pack('<i', size // 4))
        path = tmp_path / f'{layout}.pt'
        if layout == 'zip':
            with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
                archive.writestr('archive/data.pkl', large)
                with archive.open('archive/data/0', 'w') as stream:
                    for _ in range(200):
                        stream.write(bytes(2**20))
        else:
            write(path, large)
            content = path.read_bytes().removesuffix(pickle.dumps([], 2))
            path.write_bytes(content + pickle.dumps(['0'], 2) + struct.pack('<q', size // 4))
            os.truncate(path, path.stat().st_size + size)
        before = anonymous()
        read = pickled.read(path)
        assert read['a'].shape == (size // 4,) and read['a'][-1] == 0
        assert anonymous() - before < 5 * 2**20, layout
        del read
        path.unlink()


class Reduced:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def hostile(target):
    """Pickles that would write a file, if they were run."""
    command = f'echo run > {target}'
    return {
        'os.system': Reduced(os.system, command),
        'builtins.eval': Reduced(eval, f"open('{target}', 'w')"),
        'builtins.exec': Reduced(exec, f"open('{target}', 'w')"),
        'builtins.getattr': Reduced(getattr, Reduced(__import__, 'os'), 'system'),
        'builtins.__import__': {'model': [1, Reduced(__import__, 'os')]},
        'shutil.copyfile': Reduced(shutil.copyfile, __file__, target),
        'io.open': Reduced(open, target, 'w'),
        'operator.attrgetter': [operator.attrgetter('system')],
    }


@pytest.mark.parametrize('layout', WRITERS)
@pytest.mark.parametrize('protocol', [2, 4, 5])
@pytest.mark.parametrize('name', hostile(''))
def test_what_would_run_is_refused_by_name(tmp_path, layout, protocol, name):
    target = tmp_path / 'written'
    WRITERS[layout](tmp_path / 'a.pt', pickle.dumps(hostile(str(target))[name], protocol))
    said = name.replace('os.', '(os|posix|nt).')
    with pytest.raises(ValueError, match=f"asks to run '{said}'.*nothing of it was run") as error:
        pickled.read(tmp_path / 'a.pt')
    assert str(tmp_path / 'a.pt') in str(error.value)
    assert os.listdir(tmp_path) == ['a.pt']


STORAGE = np.zeros(4, np.float32)
TENSOR = 'torch._utils._rebuild_tensor_v2'


def deep(opening, closing, depth=20_000):
    return Raw(opening * depth + b'N' + closing * depth)


ODD = {
    'a huge index': (Raw(b'Nr\xff\xff\xff\x7f'), 'keeps something as number 2147483647'),
    'a memo that is empty': (Raw(b'h\x05'), 'number 5 of what it kept'),
    'a huge string': (Raw(b'X\xff\xff\xff\x7f'), 'bytes long, above'),
    'an endless string': (Raw(b'\x8d' + b'\xff' * 8), 'maxsize'),
    'a string cut short': (Raw(b'X\xff\xff\0\0ab'), 'remain'),
    'an unknown opcode': (Raw(b'\xff'), 'unknown'),
    'an extension': (Raw(b'\x82\1'), 'opcode EXT1'),
    'an old instance': (Raw(b'(ios\nsystem\n'), "opcode INST 'os system'"),
    'a text as a storage': (Raw(b'Pkey\n'), 'opcode PERSID'),
    'an empty stack': (Raw(b'0'), 'takes what is not there'),
    'no mark': (Raw(b't'), 'takes what is not there'),
    'an unended mark': (Raw(b'N('), 'takes what|one thing'),
    'a call of nothing': (Raw(b'N)R'), 'calls a NoneType'),
    'arguments that are none': (Raw(b'ctorch\nSize\n]R'), 'with a list'),
    'a name of numbers': (Raw(b'K\1K\2\x93'), 'names a function'),
    'attributes of a number': (Raw(b'K\1}b'), 'attributes of a int'),
    'attributes of a tensor': (Call(TENSOR, (), {}), 'calls'),
    'a table with half an item': (Raw(b'}(K\1u'), 'sets 1 keys'),
    'items of a number': (Raw(b'K\1(K\1K\2u'), 'keys and values of a int'),
    'a list as a key': (Raw(b'}](K\1u'.replace(b'](K', b']K') + b's'), 'takes what|key of a table'),
    'a deep key': (Raw(b'})' + b'\x85' * 5000 + b'K\1s'), 'key of a table'),
    'a colliding key': (Raw(b'}' + b'\x8a\x08' + b'\xff' * 7 + b'\x1f' + b'K\1s'), 'key of a table'),
    'a storage of another word': (
        Raw(b'(X\3\0\0\0xyzctorch\nFloatStorage\nX\1\0\0\0' + b'0X\3\0\0\0cpuK\1tQ'),
        "by 'xyz'",
    ),
    'a storage of a number': (Raw(b'K\1Q'), 'describes none'),
    'a storage of a function': (
        Raw(b'(X\7\0\0\0storagectorch\nSize\nX\1\0\0\0' + b'0X\3\0\0\0cpuK\1tQ'),
        'torch.Size',
    ),
    'a storage of -1': (
        Raw(b'(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0' + b'0X\3\0\0\0cpuJ\xff\xff\xff\xfftQ'),
        '-1',
    ),
    'a storage that is not there': (
        Raw(b'(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0' + b'xX\3\0\0\0cpuK\1tQ'),
        "'x'|list of storages",
    ),
    'a tensor of no storage': (Call(TENSOR, (None, 0, (1,), (1,), False, {})), r'_v2 with \(NoneType'),
    'a tensor beyond its storage': (Tensor(STORAGE, 0, (5,), (1,)), 'larger than its storage'),
    'an offset beyond its storage': (Tensor(STORAGE, 4, (1,), (1,)), 'larger than its storage'),
    'strides beyond its storage': (Tensor(STORAGE, 0, (2, 2), (3, 1)), 'larger than its storage'),
    'a negative offset': (Tensor(STORAGE, -1, (1,), (1,)), 'that are none'),
    'negative strides': (Tensor(STORAGE, 3, (4,), (-1,)), 'that are none'),
    'a negative size': (Tensor(STORAGE, 0, (-1,), (1,)), 'that are none'),
    'a size of text': (Tensor(STORAGE, 0, ('1',), (1,)), 'that are none'),
    'fewer strides': (Tensor(STORAGE, 0, (2, 2), (1,)), 'that are none'),
    'many dimensions': (Tensor(STORAGE, 0, (1,) * 70, (1,) * 70), '70 dimensions'),
    'a repeated bomb': (Tensor(STORAGE, 0, (2**40,), (0,)), 'larger than its storage'),
    'a product that wraps': (Tensor(STORAGE, 0, (2**32, 2**32, 4), (0, 0, 1)), 'larger than its storage'),
    'an empty tensor beyond numpy': (Tensor(STORAGE, 0, (0, 2**62, 2**62), (1, 1, 1)), 'too big'),
    'a sparse tensor': (Call('torch._utils._rebuild_sparse_tensor'), 'asks to run'),
    'another encoding': (Call('_codecs.encode', ('a', 'rot13')), 'encodes a text'),
    'an odd number': (Call('numpy.dtype', ('O8', False, True)), "kind 'O8'"),
    'a swapped number': (Call('numpy.dtype', ('f8', False, True), (3, '>')), 'byte order'),
    'a table of no pairs': (Call('collections.OrderedDict', ([1, 2],)), 'not pairs'),
    'copies of copies': (
        Raw(b'](' + b'K\1' * 1000 + b'e\x94' + b'0' + b'cbuiltins\nset\nh\0\x85R' * 400 + b'l'),
        'again and again',
    ),
}


@pytest.mark.parametrize('layout', WRITERS)
@pytest.mark.parametrize('kind', ODD)
def test_odd_pickles_are_refused(tmp_path, layout, kind):
    value, said = ODD[kind]
    WRITERS[layout](tmp_path / 'a.pt', value)
    with pytest.raises(ValueError, match=said) as error:
        pickled.read(tmp_path / 'a.pt')
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize('opening, closing', [(b'](', b'e'), (b'}K\1', b's'), (b'(', b't'), (b'', b'\x85')])
def test_depth_is_no_recursion(tmp_path, opening, closing):
    write_zip(tmp_path / 'a.pt', deep(opening, closing))
    assert pickled.read(tmp_path / 'a.pt') is not None


def test_a_tower_of_references_stays_small(tmp_path):
    doubled = b''.join(b'h' + bytes([i]) + b'h' + bytes([i]) + b'\x86\x94' for i in range(60))
    write_zip(tmp_path / 'a.pt', b'\x80\x04)\x94' + doubled + b'.')
    with pytest.raises(ValueError, match='one thing'):
        pickled.read(tmp_path / 'a.pt')


@pytest.mark.parametrize('limit', ['LIMIT', 'OPCODES'])
def test_a_pickle_has_a_limit(tmp_path, monkeypatch, limit):
    write_zip(tmp_path / 'a.pt', b'\x80\x02N' + b'N0' * 1000 + b'.')
    assert pickled.read(tmp_path / 'a.pt') is None
    monkeypatch.setattr(unpickle, limit, 2000)
    with pytest.raises(ValueError, match='longer than'):
        pickled.read(tmp_path / 'a.pt')


def archive_of(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w') as archive:
        for name, content, kind in members:
            archive.writestr(zipfile.ZipInfo(name), content, kind)
    return bytearray(stream.getvalue())


def patched(data, name, field, value, size=4):
    """The central directory's entry of a member with another value at `field`."""
    at = data.rfind(name.encode()) - 46 + field
    data[at : at + size] = value.to_bytes(size, 'little')
    return data


PICKLE = pickle.dumps({'a': 1}, 2)
PLAIN = [('a/data.pkl', PICKLE, 0), ('a/data/0', bytes(64), 0)]
DAMAGED = {
    'compressed': (archive_of([('a/data.pkl', PICKLE, 8)]), 'compressed'),
    'an absolute name': (archive_of([*PLAIN, ('/etc/passwd', b'', 0)]), 'no name of a member'),
    'a way out': (archive_of([*PLAIN, ('a/../../x', b'', 0)]), 'no name of a member'),
    'no pickle': (archive_of([('a/data/0', b'', 0)]), '0 data.pkl'),
    'two pickles': (archive_of([*PLAIN, ('b/data.pkl', PICKLE, 0)]), '2 data.pkl'),
    'a program': (archive_of([*PLAIN, ('a/constants.pkl', PICKLE, 0)]), 'TorchScript'),
    'another byte order': (archive_of([*PLAIN, ('a/byteorder', b'middle', 0)]), 'byteorder'),
    'cut short': (archive_of(PLAIN)[:-30], 'not whole'),
    'cut to its head': (archive_of(PLAIN)[:10], 'not whole'),
    'members that overlap': (patched(archive_of(PLAIN), 'a/data/0', 42, 0), 'does not begin|another name'),
    'a member beyond the end': (patched(archive_of(PLAIN), 'a/data/0', 42, 10**6), 'does not begin'),
    'a size that is not there': (patched(archive_of(PLAIN), 'a/data/0', 24, 2**31), 'has not'),
    'a member over the directory': (
        patched(patched(archive_of(PLAIN), 'a/data/0', 24, 65), 'a/data/0', 20, 65),
        'has not',
    ),
    'both sizes that are not there': (
        patched(patched(archive_of(PLAIN), 'a/data/0', 24, 2**31), 'a/data/0', 20, 2**31),
        'has not',
    ),
    'zip64 without it': (patched(archive_of(PLAIN), 'a/data/0', 24, 2**32 - 1), 'has not|not whole'),
    'encrypted': (patched(archive_of(PLAIN), 'a/data/0', 8, 1, 2), 'encrypted'),
    'another name inside': (archive_of(PLAIN).replace(b'a/data/0', b'a/data/9', 1), 'another name'),
    'tar': (bytearray(257) + b'ustar\0' + bytearray(300), 'torch 0.1'),
    'a pickle alone': (bytearray(PICKLE), 'not one that torch.save wrote'),
    'text': (bytearray(b'<html>not found</html>'), 'cannot be read'),
    'nothing': (bytearray(), 'empty'),
}


@pytest.mark.parametrize('kind', DAMAGED)
def test_damaged_files_are_refused(tmp_path, kind):
    content, said = DAMAGED[kind]
    (tmp_path / 'a.pt').write_bytes(content)
    with pytest.raises(ValueError, match=said):
        pickled.read(tmp_path / 'a.pt')


@pytest.mark.parametrize('change', [lambda data: data[:-1], lambda data: data + b'\0'])
def test_legacy_storages_fill_the_file(tmp_path, change):
    path = tmp_path / 'a.pt'
    write_legacy(path, {'a': np.arange(5.0)})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match='is it whole|follow its last'):
        pickled.read(path)
