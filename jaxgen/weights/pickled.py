"""Checkpoints of torch.save (.pth, .pt, .bin, .ckpt), read without torch as memory-mapped views.

Two layouts: a zip archive of uncompressed members, <name>/data.pkl for the structure and <name>/data/<key>
for the storages (torch 1.6 and later), and a chain of pickles with the storages behind it (before). The
pickles go through `unpickle`, which runs nothing.
"""

import os
import re
import zipfile
from typing import Any

import numpy as np

from jaxgen.weights.unpickle import LIMIT, Storage, unpickle

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
LINE = 2**16  # bytes; the longest line in a pickle is a function's name
LOCAL_HEADER = 30  # bytes of a zip member's own header before its name
NO_ZIP = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError, EOFError)


class _Stream:
    """The bytes of a mapped file, a bounded piece at a time."""

    def __init__(self, data: np.ndarray, start: int = 0):
        self.data, self.at = data, start

    def read(self, count: int) -> bytes:
        if count > LIMIT:
            raise ValueError(f'a piece of its pickle would be {count} bytes long, above {LIMIT}')
        piece = self.data[self.at : self.at + count].tobytes()
        self.at += len(piece)
        return piece

    def readline(self) -> bytes:
        piece = self.data[self.at : self.at + LINE].tobytes()
        line = piece[: piece.find(b'\n') + 1]
        self.at += len(line)
        return line

    def tell(self) -> int:
        return self.at


def read(path: str | os.PathLike) -> Any:
    """What was saved: plain containers and numbers, with read-only views of the file as arrays."""
    try:
        data = np.memmap(path, np.uint8, 'r')
        if data[:2].tobytes() == b'PK':
            return _zip(path, data)
        if data[257:262].tobytes() == b'ustar':
            raise ValueError('it has the tar layout of torch 0.1; load and save it with a later torch once')
        return _legacy(data)
    except ValueError as error:
        raise ValueError(f'{path} cannot be read as a checkpoint: {error!s:.500}.') from None


def _zip(path: str | os.PathLike, data: np.ndarray) -> Any:
    members = _members(path, data)
    if any(name.endswith('/constants.pkl') for name in members):
        raise ValueError('it is a TorchScript program, not weights; save its state_dict with torch.save')
    pickles = [name for name in members if re.fullmatch('[^/]+/data[.]pkl', name)]
    if len(pickles) != 1:
        raise ValueError(f'it is a zip archive with {len(pickles)} data.pkl, where one is needed')
    top = pickles[0].removesuffix('data.pkl')
    order = _content(data, members.get(f'{top}byteorder', (0, 0))).tobytes() or b'little'
    if order not in (b'little', b'big'):
        raise ValueError(f'its byteorder is {order!r:.50}')
    storages: dict[tuple[str, np.dtype], Storage] = {}

    def find(key: str, dtype: np.dtype | None, count: int) -> Storage:
        if (key, dtype) not in storages:
            place = members.get(f'{top}data/{key}')
            if place is None:
                raise ValueError(f'its pickle speaks of a storage {key!r:.50}, which is not there')
            content = _content(data, place)
            if order == b'big':
                content = _swapped(content, dtype)
            storages[key, dtype] = Storage(content, np.dtype(np.uint8) if dtype is None else dtype)
        storage = storages[key, dtype]
        _check_size(key, count * storage.dtype.itemsize, len(storage.data))
        return storage

    return unpickle(_Stream(_content(data, members[pickles[0]])), find, len(data))


def _members(path: str | os.PathLike, data: np.ndarray) -> dict[str, tuple[int, int]]:
    """Where the members' bytes begin, and how many they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            listed = sorted(archive.infolist(), key=lambda member: member.header_offset)
            limit = archive.start_dir
    except NO_ZIP as error:
        raise ValueError(f'its zip archive is not whole: {error}') from None
    members: dict[str, tuple[int, int]] = {}
    end = 0
    for member in listed:
        name, at = member.orig_filename, member.header_offset
        header = data[max(0, at) : at + LOCAL_HEADER].tobytes()
        if at < end or len(header) < LOCAL_HEADER or header[:4] != b'PK\x03\x04':
            raise ValueError(f'{name!r:.100} does not begin at {at}, where its zip archive says')
        begin = at + LOCAL_HEADER + int.from_bytes(header[26:28], 'little')
        if data[at + LOCAL_HEADER : begin].tobytes() != name.encode(_encoding(member)):
            raise ValueError(f'{name!r:.100} has another name in its own place in the zip archive')
        begin += int.from_bytes(header[28:30], 'little')
        end = begin + member.file_size
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise ValueError(f'{name!r:.100} is compressed or encrypted, which torch.save does not do')
        if member.compress_size != member.file_size or end > limit:
            raise ValueError(f'{name!r:.100} would take {member.file_size} bytes, which it has not')
        if name in members or name.startswith('/') or '..' in name.split('/'):
            raise ValueError(f'{name!r:.100} is there twice, or is no name of a member')
        members[name] = begin, member.file_size
    return members


def _encoding(member: zipfile.ZipInfo) -> str:
    return 'utf-8' if member.flag_bits & 0x800 else 'cp437'


def _content(data: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    begin, size = place
    return data[begin : begin + size]


def _swapped(content: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    """A storage of a big-endian machine: the one case that is copied."""
    if dtype is None:
        raise ValueError('it has untyped storages of a big-endian machine, which nobody can read')
    size = dtype.itemsize // 2 if dtype.kind == 'c' else dtype.itemsize
    whole = content[: len(content) // size * size]
    return whole.reshape(-1, size)[:, ::-1].reshape(-1)


def _legacy(data: np.ndarray) -> Any:
    def none(key: str, dtype: np.dtype | None, count: int) -> Storage:
        raise ValueError('a storage stands where none can be')

    stream = _Stream(data)
    if unpickle(stream, none, 0) != MAGIC:
        raise ValueError('it is a pickle, but not one that torch.save wrote')
    if unpickle(stream, none, 0) != PROTOCOL:
        raise ValueError(f'its protocol is not {PROTOCOL}')
    unpickle(stream, none, 0)  # the machine that wrote it; storages are little-endian whatever it was
    start = stream.at
    dtypes: dict[str, np.dtype] = {}

    def note(key: str, dtype: np.dtype | None, count: int) -> Storage:
        known = dtypes.setdefault(key, np.dtype(np.uint8) if dtype is None else dtype)
        return Storage(None, known)

    # The storages follow the pickle that speaks of them, and their sizes depend on it: it is read twice.
    unpickle(stream, note, len(data))
    keys = unpickle(stream, none, 0)
    if type(keys) is not list or not all(type(key) is str for key in keys) or {*keys} != {*dtypes}:
        raise ValueError('its list of storages is not that of its pickle')
    storages = _chain(data, stream.at, {key: dtypes[key] for key in keys})

    def find(key: str, dtype: np.dtype | None, count: int) -> Storage:
        storage = storages[key]
        _check_size(key, count * storage.dtype.itemsize, len(storage.data))
        return storage

    return unpickle(_Stream(data, start), find, len(data))


def _chain(data: np.ndarray, at: int, dtypes: dict[str, np.dtype]) -> dict[str, Storage]:
    """Storages one behind the other, each with its number of elements before it."""
    storages: dict[str, Storage] = {}
    for key, dtype in dtypes.items():
        count = int.from_bytes(data[at : at + 8].tobytes(), 'little')
        at, end = at + 8, at + 8 + count * dtype.itemsize
        _check_size(key, end, len(data))
        storages[key] = Storage(data[at:end], dtype)
        at = end
    if at != len(data):
        raise ValueError(f'{len(data) - at} bytes follow its last storage')
    return storages


def _check_size(key: str, wanted: int, there: int) -> None:
    if wanted > there:
        raise ValueError(f'it ends at {there}, but storage {key!r:.50} would end at {wanted}; is it whole?')
