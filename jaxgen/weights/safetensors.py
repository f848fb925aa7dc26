"""Files in the safetensors format, read as memory-mapped views and written one tensor at a time.

Eight bytes of length, a JSON header {name: {dtype, shape, data_offsets}}, and the tensors' bytes without a
gap (https://github.com/huggingface/safetensors). The whole header is checked before any array is made of it.
What is written equals the reference's file byte for byte.
"""

import json
import math
import os
import pathlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from tqdm import tqdm

HEADER_LIMIT = 100_000_000  # bytes, the format's own
DIMENSIONS = 64  # numpy's limit
CHUNK = 2**24  # bytes that are copied at a time of an array that does not lie in order
PATIENCE = 2  # seconds before a bar is shown
METADATA = '__metadata__'
FORMAT = {'format': 'pt'}  # what from_pretrained asks for

# In the order in which a file holds them, the last first, so that all are aligned.
DTYPES = {
    'BOOL': np.dtype(np.bool_),
    'U8': np.dtype('<u1'),
    'I8': np.dtype('<i1'),
    'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
    'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
    'F8_E8M0': np.dtype(ml_dtypes.float8_e8m0fnu),
    'I16': np.dtype('<i2'),
    'U16': np.dtype('<u2'),
    'F16': np.dtype('<f2'),
    'BF16': np.dtype(ml_dtypes.bfloat16),
    'I32': np.dtype('<i4'),
    'U32': np.dtype('<u4'),
    'F32': np.dtype('<f4'),
    'C64': np.dtype('<c8'),
    'F64': np.dtype('<f8'),
    'I64': np.dtype('<i8'),
    'U64': np.dtype('<u8'),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
RANKS = {code: rank for rank, code in enumerate(DTYPES)}


class Entry(NamedTuple):
    """A tensor to be written; `make` is called when its turn has come."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class _Place(NamedTuple):
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file by name: read-only views that take memory only where they are looked at."""
    try:
        data = np.memmap(path, np.uint8, 'r')
        header, start = _header(data)
        places = _places(header, len(data) - start)
        return {
            place.name: np.ndarray(place.shape, place.dtype, data, start + place.begin) for place in places
        }
    except ValueError as error:
        raise ValueError(f'{path} is not a whole safetensors file: {error}.') from None


def write(
    path: str | os.PathLike, entries: Iterable[Entry], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file, under a temporary name until it is whole; the memory needed is that of one tensor."""
    path = pathlib.Path(path)
    ordered = _ordered(entries)
    unfinished = path.with_name(f'{path.name}.{secrets.token_hex(4)}.tmp')  # another process may write it too
    try:
        with unfinished.open('wb') as stream:
            stream.write(_header_bytes(ordered, metadata))
            for entry in tqdm(ordered, f'write {path.name}', unit='tensor', delay=PATIENCE):
                _append(stream, entry)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    except OSError as error:  # of a full disk, the system says no name
        raise OSError(error.errno, f'{path} was not written: {error.strerror or error}') from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_sharded(
    folder: str | os.PathLike, stem: str, entries: Iterable[Entry], limit: int
) -> tuple[str, ...]:
    """Write <stem>.safetensors, or shards of at most `limit` bytes and their index; the names of the files.

    The files are cut and named as from_pretrained expects them. After a failure none of them is left.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in (f'{stem}.safetensors*', f'{stem}-?????-of-?????.safetensors'):
        if known := sorted(folder.glob(pattern)):
            raise ValueError(f'{known[0]} is there already; give another folder, or move that away.')
    shards = _shards(entries, limit)
    number = len(shards)
    names = [f'{stem}-{i + 1:05d}-of-{number:05d}.safetensors' for i in range(number)]
    if number == 1:
        names = [f'{stem}.safetensors']
    index = f'{stem}.safetensors.index.json'
    try:
        for name, shard in zip(names, shards):
            write(folder / name, shard, FORMAT)
        if number > 1:
            _write_index(folder / index, dict(zip(names, shards)))
            names.append(index)
    except BaseException:
        for name in (*names, index):
            (folder / name).unlink(missing_ok=True)
        raise
    return tuple(names)


def made_in_order(entries: Iterable[Entry], limit: int) -> None:
    """Make all tensors as `write_sharded` does, where several processes make them and one writes."""
    for shard in _shards(entries, limit):
        for entry in _ordered(shard):
            entry.make()


def _ordered(entries: Iterable[Entry]) -> list[Entry]:
    return sorted((Entry(*entry) for entry in entries), key=lambda entry: (-RANKS[_code(entry)], entry.name))


def _header(data: np.ndarray) -> tuple[dict[str, Any], int]:
    """The parsed header and where the tensors' bytes begin."""
    length = int.from_bytes(data[:8].tobytes(), 'little')
    if length > HEADER_LIMIT:
        raise ValueError(f'its header would be {length} bytes long, above the limit of {HEADER_LIMIT}')
    if 8 + length > len(data):
        raise ValueError(f'its header would be {length} bytes long, but the file has {len(data)} in all')
    try:
        header = json.loads(data[8 : 8 + length].tobytes().decode(), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError('its header is nested too deeply') from None
    if not isinstance(header, dict):
        raise ValueError(f'its header is a {type(header).__name__}, not an object')
    notes = header.pop(METADATA, {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ValueError(f'its {METADATA} is not a table of strings')
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError('its header has a name twice')
    return table


def _places(header: Mapping[str, Any], size: int) -> list[_Place]:
    """Where the tensors lie among `size` bytes: each where the one before it ends."""
    places = sorted((_place(*item) for item in header.items()), key=lambda place: (place.begin, place.end))
    end = 0
    for place in places:
        if place.begin != end:
            kind = 'overlaps the tensor before it' if place.begin < end else 'leaves a hole before it'
            raise ValueError(f'{place.name!r} {kind} (at {place.begin}, not {end})')
        end = place.end
    if end != size:
        raise ValueError(f'its tensors take {end} bytes, but {size} follow the header')
    return places


def _place(name: str, about: Any) -> _Place:
    if not isinstance(about, dict) or about.keys() != {'dtype', 'shape', 'data_offsets'}:
        raise ValueError(f'{name!r} needs dtype, shape and data_offsets, and has {about!r:.200}')
    code, shape, offsets = about['dtype'], about['shape'], about['data_offsets']
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f'{name!r} has the dtype {code!r:.200}; known are {", ".join(DTYPES)}')
    if not _wholes(shape) or len(shape) > DIMENSIONS:
        raise ValueError(f'{name!r} has the shape {shape!r:.200}')
    if not _wholes(offsets) or len(offsets) != 2:
        raise ValueError(f'{name!r} has the data_offsets {offsets!r:.200}')
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[code].itemsize:
        raise ValueError(f'{name!r} is {code}{shape!r:.200}, but has {end - begin} bytes')
    return _Place(name, DTYPES[code], tuple(shape), begin, end)


def _wholes(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**63 for each in value)


def _code(entry: Entry) -> str:
    if entry.dtype not in CODES:
        raise ValueError(f'{entry.name!r} is {entry.dtype}, which safetensors does not have.')
    return CODES[entry.dtype]


def _header_bytes(entries: list[Entry], metadata: Mapping[str, str] | None) -> bytes:
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for entry in entries:
        if entry.name in header or entry.name == METADATA:
            raise ValueError(f'{entry.name!r} is the name of something else in the file already.')
        begin, end = end, end + entry.size
        header[entry.name] = {
            'dtype': _code(entry),
            'shape': list(entry.shape),
            'data_offsets': [begin, end],
        }
    text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
    text += b' ' * (-len(text) % 8)
    return len(text).to_bytes(8, 'little') + text


def _append(stream: BinaryIO, entry: Entry) -> None:
    """Make a tensor and write its bytes; one that does not lie in order is put into order slice by slice."""
    array = np.asarray(entry.make())
    if array.shape != tuple(entry.shape) or array.dtype != entry.dtype:
        made = f'{array.dtype}{list(array.shape)}'
        raise ValueError(f'{entry.name!r} was to be {entry.dtype}{list(entry.shape)}, and is {made}.')
    if array.flags.c_contiguous:
        stream.write(array.reshape(-1).view(np.uint8))
        return
    rows = max(1, CHUNK // (array.nbytes // len(array)))
    for start in range(0, len(array), rows):
        stream.write(np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8))


def _shards(entries: Iterable[Entry], limit: int) -> list[list[Entry]]:
    """Entries in their order, as many as fit; one that is larger than the limit has a shard of its own."""
    shards: list[list[Entry]] = []
    filling: list[Entry] = []
    room = limit
    for entry in (Entry(*entry) for entry in entries):
        if entry.size > limit:
            shards.append([entry])
            continue
        if entry.size > room:
            shards.append(filling)
            filling, room = [], limit
        filling.append(entry)
        room -= entry.size
    return [*shards, filling] if filling or not shards else shards


def _write_index(path: pathlib.Path, shards: Mapping[str, list[Entry]]) -> None:
    index = {
        'metadata': {'total_size': sum(entry.size for shard in shards.values() for entry in shard)},
        'weight_map': {entry.name: file for file, shard in shards.items() for entry in shard},
    }
    unfinished = path.with_name(f'{path.name}.tmp')
    unfinished.write_text(json.dumps(index, indent=2, sort_keys=True) + '\n')
    unfinished.replace(path)
