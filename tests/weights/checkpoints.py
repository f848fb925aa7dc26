"""Checkpoints as torch.save writes them, put together without torch: honest ones and hostile ones."""

import dataclasses
import pickle
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

KINDS = {
    np.dtype(np.float64): 'DoubleStorage',
    np.dtype(np.float32): 'FloatStorage',
    np.dtype(np.float16): 'HalfStorage',
    np.dtype(ml_dtypes.bfloat16): 'BFloat16Storage',
    np.dtype(np.int64): 'LongStorage',
    np.dtype(np.uint8): 'ByteStorage',
    np.dtype(np.bool_): 'BoolStorage',
}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STOP = b'.'


@dataclasses.dataclass
class Call:
    """A function by its name, called, with what is set on the result."""

    name: str
    arguments: tuple = ()
    state: Any = None
    new: bool = False


@dataclasses.dataclass
class Tensor:
    """A view of a storage, which several may share."""

    storage: np.ndarray
    offset: int
    shape: tuple
    strides: tuple


@dataclasses.dataclass
class Raw:
    """Opcodes as they are."""

    opcodes: bytes


class Assembler:
    """Pickles of protocol 2, with the storages that they speak of."""

    def __init__(self, legacy: bool = False):
        self.legacy = legacy
        self.storages: list[np.ndarray] = []
        self.memo: dict[str, int] = {}
        self.kept = 0

    def pickle(self, value: Any) -> bytes:
        """A whole pickle."""
        return b'\x80\x02' + self.emit(value) + STOP

    def emit(self, value: Any) -> bytes:
        """The opcodes of a value."""
        if isinstance(value, Raw):
            return value.opcodes
        if isinstance(value, str):
            return self.text(value)
        if value is None or isinstance(value, bool):
            return {None: b'N', True: b'\x88', False: b'\x89'}[value]
        if isinstance(value, int):
            return b'J' + struct.pack('<i', value) if abs(value) < 2**31 else pickle.dumps(value, 2)[2:-1]
        if isinstance(value, float):
            return b'G' + struct.pack('>d', value)
        if isinstance(value, dict):
            empty = b'}' + self.keep()
            return empty + b'(' + b''.join(self.emit(each) for item in value.items() for each in item) + b'u'
        if isinstance(value, list):
            return b']' + self.keep() + b'(' + b''.join(map(self.emit, value)) + b'e'
        if isinstance(value, tuple):
            return b'(' + b''.join(map(self.emit, value)) + b't' + self.keep()
        if isinstance(value, Call):
            return self.call(value)
        if isinstance(value, np.ndarray):
            strides = tuple(stride // value.itemsize for stride in value.strides)
            value = Tensor(value.reshape(-1), 0, value.shape, strides)
        return self.tensor(value)

    def keep(self) -> bytes:
        """Put what is on top into the memo."""
        self.kept += 1
        return b'r' + struct.pack('<I', self.kept - 1)

    def text(self, value: str) -> bytes:
        """A string, or its number in the memo."""
        if value in self.memo:
            return b'j' + struct.pack('<I', self.memo[value])
        self.memo[value] = self.kept
        data = value.encode()
        return b'X' + struct.pack('<I', len(data)) + data + self.keep()

    def name(self, name: str) -> bytes:
        """A global."""
        module, _, last = name.rpartition('.')
        return f'c{module}\n{last}\n'.encode()

    def call(self, value: Call) -> bytes:
        """A call, and what is set on its result."""
        made = self.name(value.name) + self.emit(value.arguments) + (b'\x81' if value.new else b'R')
        return made + (b'' if value.state is None else self.emit(value.state) + b'b')

    def tensor(self, value: Tensor) -> bytes:
        """A tensor and its storage."""
        number = next((i for i, known in enumerate(self.storages) if known is value.storage), None)
        if number is None:
            number = len(self.storages)
            self.storages.append(value.storage)
        kind = Raw(self.name(f'torch.{KINDS[value.storage.dtype]}'))
        asked = ('storage', kind, str(number), 'cpu', value.storage.size, *((None,) if self.legacy else ()))
        storage = Raw(self.emit(asked) + b'Q')
        hooks = Call('collections.OrderedDict')
        given = (storage, value.offset, value.shape, value.strides, False, hooks)
        return self.emit(Call('torch._utils._rebuild_tensor_v2', given))


def write_zip(path: Any, value: Any, order: str = 'little', name: str = 'archive') -> None:
    """The layout of torch 1.6 and later; `value` may be a whole pickle as bytes."""
    assembler = Assembler()
    data = value if isinstance(value, bytes) else assembler.pickle(value)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
        archive.writestr(f'{name}/data.pkl', data)
        archive.writestr(f'{name}/byteorder', order)
        for number, storage in enumerate(assembler.storages):
            swapped = storage.byteswap() if order == 'big' else storage
            archive.writestr(f'{name}/data/{number}', swapped.tobytes())
        archive.writestr(f'{name}/version', '3\n')


def write_legacy(path: Any, value: Any) -> None:
    """The layout before; `value` may be a whole pickle as bytes."""
    assembler = Assembler(legacy=True)
    data = value if isinstance(value, bytes) else assembler.pickle(value)
    keys = [str(number) for number in range(len(assembler.storages))]
    about = {'protocol_version': PROTOCOL, 'little_endian': True, 'type_sizes': {'short': 2, 'int': 4}}
    with open(path, 'wb') as stream:
        for each in (MAGIC, PROTOCOL, about):
            stream.write(pickle.dumps(each, 2))
        stream.write(data + pickle.dumps(keys, 2))
        for storage in assembler.storages:
            stream.write(struct.pack('<q', storage.size) + storage.tobytes())
