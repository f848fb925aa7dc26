"""Archives of numpy.savez (.npz), read as memory-mapped views: big_vision publishes flax trees so.

A ZIP archive of .npy files, each with its dtype and shape before the bytes; only what lies in it uncompressed
can be mapped, and nothing that would have to be unpickled is read.
"""

import pathlib
import zipfile
from typing import BinaryIO

import ml_dtypes
import numpy as np

_LOCAL = 30  # bytes before a member's name, the last four of which are the lengths of name and extra field
# What numpy knows no name for is written as bytes without one; of two bytes they are bfloat16.
_UNNAMED = {np.dtype('V2'): np.dtype(ml_dtypes.bfloat16)}


def read(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an archive by name; nothing of them is in memory until it is looked at."""
    try:
        with zipfile.ZipFile(file) as archive, file.open('rb') as stream:
            return {
                info.filename.removesuffix('.npy'): _mapped(file, stream, info)
                for info in archive.infolist()
                if not info.is_dir()
            }
    except (zipfile.BadZipFile, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f'{file} is no archive of arrays, or not all of one: {error}.') from None


def _mapped(file: pathlib.Path, stream: BinaryIO, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f'{file} is compressed; write it again with numpy.savez.')
    stream.seek(info.header_offset)
    local = stream.read(_LOCAL)
    name, extra = (int.from_bytes(local[start : start + 2], 'little') for start in (26, 28))
    start = info.header_offset + _LOCAL + name + extra
    stream.seek(start)
    try:
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = header[np.lib.format.read_magic(stream)](stream)
    except (ValueError, KeyError) as error:
        raise ValueError(f'{file}: {info.filename} is no array of numpy: {error}.') from None
    if dtype.hasobject:
        raise ValueError(f'{file}: {info.filename} holds objects, which would have to be unpickled.')
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if stream.tell() - start + size != info.file_size or start + info.file_size > file.stat().st_size:
        raise ValueError(f'{file}: {info.filename} has not the {size:,} bytes that its shape asks for.')
    if not size:
        return np.zeros(shape, dtype)
    order = 'F' if fortran else 'C'
    array = np.memmap(file, dtype, 'r', stream.tell(), shape, order)
    return array.view(_UNNAMED[dtype]) if dtype in _UNNAMED else array
