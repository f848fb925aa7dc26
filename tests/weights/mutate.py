"""Mutated weight files, read one after the other: `python mutate.py COUNT SEED` prints what became of it.

Each is read to arrays that can be looked at, or refused with a ValueError. Anything else ends the process
with an error: another exception, more than a few seconds, more memory than small files could need, or an
event of Python's audit that only running something causes.
"""

import codecs
import collections
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile

import checkpoints
import ml_dtypes
import numpy as np
from checkpoints import Call, Raw, Tensor

from jaxgen.weights import files, pickled, safetensors

SECONDS = 5
MEMORY = 2**30  # bytes of address space beyond what is taken at the start
RUNS = ('os.', 'subprocess.', 'pickle.', 'socket.', 'ctypes.', 'exec', 'import', 'compile', 'shutil.')
QUIET = ('os.listdir', 'os.scandir', 'os.remove', 'os.rename', 'os.unlink')
NUMBERS = (0, 1, 7, 8, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
PIECES = (
    *(
        b'cos\nsystem\n',
        b'cbuiltins\neval\n',
        b'X\x04\x00\x00\x00true',
        b'\x85R',
        b'0',
        b'(',
        b't',
        b'.',
        b'b',
    ),
    *(
        b'R',
        b'Q',
        b'q\xff',
        b'r\xff\xff\xff\xff',
        b'X\xff\xff\xff\x7f',
        b'\x8b\xff\xff\xff\x7f',
        b'}',
        b']',
        b'u',
    ),
    *(
        b'cargparse\nNamespace\n',
        b')\x81',
        b'\x93',
        b'\x94',
        b'\x8d' + b'\xff' * 8,
        b'J\xff\xff\xff\xff',
        b'h\x00',
    ),
    *(
        b'PK\x03\x04',
        b'PK\x01\x02',
        b'PK\x05\x06',
        b'PK\x06\x06',
        b'{}',
        b'[]',
        b'"',
        b'9' * 30,
        b'-1',
        b'null',
    ),
)


def tree():
    """Something of everything that checkpoints hold."""
    shared = np.arange(24, dtype=np.float32)
    model = {
        'module.weight': Tensor(shared, 0, (4, 6), (6, 1)),
        'module.view': Tensor(shared, 3, (2, 3), (1, 6)),
        'module.half': np.ones((3, 2), np.float16),
        'module.bf16': np.ones(5, ml_dtypes.bfloat16),
        'module.count': np.array(7, np.int64),
        'module.mask': np.array([True, False]),
    }
    dtype = Call('numpy.dtype', ('f8', False, True), (3, '<', None, None, None, -1, -1, 0))
    number = Call('numpy.core.multiarray.scalar', (dtype, Call('_codecs.encode', ('\0' * 8, 'latin1'))))
    settings = Call('argparse.Namespace', (), {'lr': 1e-4, 'names': ['a', 'b'], 'steps': 2**40}, True)
    kept = Call('__builtin__.set', ([1, 2, 'x'],))
    return {'model': model, 'ema': dict(model), 'args': settings, 'loss': number, 'seen': kept, 'none': None}


def seeds(folder):
    """Files as they should be."""
    arrays = {
        f'layers.{i}.weight': np.ones((i, 3), dtype)
        for i, dtype in enumerate((np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_, np.uint8))
    }
    entries = [safetensors.Entry(name, a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()]
    paths = [os.path.join(folder, name) for name in ('seed.safetensors', 'seed.pt', 'legacy.pt')]
    safetensors.write(paths[0], entries, safetensors.FORMAT)
    checkpoints.write_zip(paths[1], tree())
    checkpoints.write_legacy(paths[2], tree())
    return [open(path, 'rb').read() for path in paths]


def mutated(rng, data, other):
    """Some bytes other than they were."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 2, 4, 8, rng.randrange(1, 200)))
        kind = rng.choice((0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 2:
            size = rng.choice((1, 2, 4, 8))
            data[at : at + size] = struct.pack('<Q', rng.choice(NUMBERS))[:size]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = rng.choice(PIECES)
        elif kind == 5:
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
        elif kind == 6:
            start = rng.randrange(len(other))
            data[at : at + length] = other[start : start + length]
        else:
            del data[at:]
    return bytes(data)


def odd_header(rng, data):
    """A safetensors file with a header that is well formed and says something else."""
    length = struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    for _ in range(rng.choice((1, 1, 2))):
        entry = header[rng.choice([name for name in header if name != '__metadata__'])]
        odd = (*NUMBERS, -1, 1.5, None, 'F32', [], [2**40, 2**40], [0, 2**62], [3] * 80, {}, True, [[]], '2')
        key = rng.choice(list(entry) or ['dtype'])
        if isinstance(entry.get(key), list) and entry[key] and rng.random() < 0.6:
            entry[key][rng.randrange(len(entry[key]))] = rng.choice(odd)
        elif rng.random() < 0.2:
            del entry[key]
        else:
            entry[key] = rng.choice((*odd, 'F64', 'U8', 'F4', 'BOOL'))
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data[8 + length :]


def file_of(rng, folder, originals):
    """Write a mutated file; its path."""
    weights, zipped, legacy = originals
    kind = rng.choice(('header', 'weights', 'zip', 'legacy', 'pickle', 'pickle', 'opcodes'))
    path = os.path.join(folder, 'mutated.safetensors' if kind in ('header', 'weights') else 'mutated.pt')
    write = rng.choice((checkpoints.write_zip, checkpoints.write_legacy))
    if kind == 'opcodes':
        write(path, b'\x80\x02' + b''.join(rng.choice(PIECES) for _ in range(rng.randrange(1, 40))) + b'.')
    elif kind == 'pickle':
        # A mutated pickle with its storages as they were: it comes past what holds the pickle.
        pickle = checkpoints.Assembler(write is checkpoints.write_legacy).emit(tree())
        write(path, {'tree': tree(), 'odd': Raw(mutated(rng, pickle, legacy))})
    else:
        data = {'header': weights, 'weights': weights, 'zip': zipped, 'legacy': legacy}[kind]
        data = odd_header(rng, data) if kind == 'header' else mutated(rng, data, rng.choice(originals))
        with open(path, 'wb') as stream:
            stream.write(data)
    return path


def touch(value):
    """Look at every byte of every array, however deep."""
    left, seen = [value], set()
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, np.ndarray):
            assert not each.flags.writeable
            each.tobytes()
        elif isinstance(each, dict):
            left += each.values()
        elif isinstance(each, list | tuple | set):
            left += each


def main(count, seed):
    """Read `count` files."""
    rng = random.Random(seed)
    watching, caused, outcomes = [False], [], collections.Counter()

    def audit(event, arguments):
        if watching[0] and event.startswith(RUNS) and event not in QUIET:
            caused.append((event, arguments))

    def too_long(*_):
        raise TimeoutError(f'a file took longer than {SECONDS} s')

    for name in (
        'cp437',
        'raw_unicode_escape',
        'latin-1',
        'utf-16',
    ):  # Python imports these when they are needed
        codecs.lookup(name)
    sys.addaudithook(audit)
    signal.signal(signal.SIGALRM, too_long)
    with open('/proc/self/statm') as stream:
        taken = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY,) * 2)
    with tempfile.TemporaryDirectory() as folder:
        originals = seeds(folder)
        for name in sorted(os.listdir(folder)):  # what reading imports is imported now
            touch(files.open_arrays(os.path.join(folder, name)))
        for _ in range(count):
            path = file_of(rng, folder, originals)
            watching[0] = True
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            for read in (files.open_arrays, safetensors.read if path.endswith('s') else pickled.read):
                try:
                    touch(read(path))
                    outcomes['read'] += 1
                except ValueError as error:
                    assert path in str(error) and len(str(error)) < 2000, error
                    outcomes['refused'] += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            watching[0] = False
            assert not caused, (caused, path)
    print(json.dumps(outcomes))


if __name__ == '__main__':
    main(int(sys.argv[1]), int(sys.argv[2]))
