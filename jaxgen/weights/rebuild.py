"""What the names in a checkpoint's pickle stand for: counterparts of what torch, numpy and Python would run.

Tensors become views of their storages, tables and sets Python's own; what trainers leave beside the weights
stands for itself as `Inert`. A name that is not listed here is refused by that name.
"""

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np

DIMENSIONS = 64  # numpy's limit

_STORAGES = {
    'Double': '<f8',
    'Float': '<f4',
    'Half': '<f2',
    'BFloat16': ml_dtypes.bfloat16,
    'Long': '<i8',
    'Int': '<i4',
    'Short': '<i2',
    'Char': 'i1',
    'Byte': 'u1',
    'Bool': '?',
    'ComplexFloat': '<c8',
    'ComplexDouble': '<c16',
}
STORAGES = {f'torch.{name}Storage': np.dtype(code) for name, code in _STORAGES.items()}
UNTYPED = 'torch.storage.UntypedStorage'
# The dtypes of tensors in untyped storages.
_DTYPES = (
    *('<u2', '<u4', '<u8', ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu),
    *_STORAGES.values(),
)
DTYPES = {f'torch.{np.dtype(code).name}': np.dtype(code) for code in _DTYPES}
NUMBERS = frozenset('f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1'.split())
# What trainers leave in a checkpoint beside its weights.
INERT = frozenset(
    """
    builtins.bool builtins.dict builtins.float builtins.int builtins.list builtins.object builtins.set
    builtins.str numpy._core.multiarray._reconstruct numpy.ndarray pathlib.PosixPath typing.Any
    torch.Tensor torch.contiguous_format torch.device torch.serialization._get_layout
    omegaconf.base.ContainerMetadata omegaconf.base.Metadata omegaconf.dictconfig.DictConfig
    omegaconf.listconfig.ListConfig omegaconf.nodes.AnyNode
    pytorch_lightning.callbacks.early_stopping.EarlyStopping
    pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint
    pytorch_lightning.utilities.parsing.AttributeDict
    """.split()
)
# Python 2, numpy 1 and a GPU's storages have other names for the same things.
RENAMED = {
    '__builtin__.': 'builtins.',
    'copy_reg.': 'copyreg.',
    'numpy.core.': 'numpy._core.',
    'torch.cuda.': 'torch.',
    'torch.UntypedStorage': UNTYPED,
}


@dataclasses.dataclass(frozen=True)
class Inert:
    """Something that a pickle names and nobody needs: the name, and nothing behind it."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """Bytes that tensors look into, or None where they are not known yet: a tensor is None then, too."""

    data: np.ndarray | None
    dtype: np.dtype


class Settings(dict):
    """The attributes of an argparse.Namespace."""


@dataclasses.dataclass
class Allowance:
    """How large things may become: nothing that is made has more items than the file has bytes."""

    most: int  # elements of one tensor
    read: int = 0  # bytes of the pickle so far
    copied: int = 0

    def spend(self, count: int) -> None:
        """Copy `count` items: all copies together have no more of them than the pickle has bytes."""
        self.copied += count
        if self.copied > self.read:
            raise ValueError('its pickle copies the same things again and again')


def named(name: str) -> Inert:
    """What a name stands for: itself, if checkpoints have it."""
    for old, new in RENAMED.items():
        if name.startswith(old):
            name = new + name[len(old) :]
    if not any(name in known for known in (_CALLS, INERT, STORAGES, DTYPES, (UNTYPED,))):
        raise ValueError(f'it asks to run {name!r:.100}, which no weights need; nothing of it was run')
    return Inert(name)


def call(function: Any, arguments: Any, allowance: Allowance) -> Any:
    """What calling a function gives; what is inert gives itself."""
    if not isinstance(function, Inert) or type(arguments) is not tuple:
        raise ValueError(f'it calls a {type(function).__name__} with a {type(arguments).__name__}')
    if function.name not in _CALLS:
        return function
    counterpart, kinds, least = _CALLS[function.name]
    taken, rest = arguments[: len(kinds)], arguments[len(kinds) :]
    if len(taken) < least or not all(map(isinstance, taken, kinds)) or any(rest):
        given = ', '.join(type(each).__name__ for each in arguments[:10])
        raise ValueError(f'it calls {function.name} with ({given})')
    return counterpart(allowance, *taken)


def key_of(value: Any) -> Any:
    """A key of a table: deep ones could take for ever to hash, and large numbers can be made to collide."""
    for each in value if type(value) is tuple else (value,):
        if type(each) not in _KEYS or (type(each) is int and abs(each) >= 2**60):
            raise ValueError(f'a key of a table is, or holds, a {type(each).__name__}')
    return value


def _tensor(
    allowance: Allowance,
    storage: Storage,
    offset: int,
    shape: tuple,
    strides: tuple,
    gradient: Any = None,
    hooks: Any = None,
    kind: Inert | None = None,
) -> np.ndarray | None:
    """A view of a storage, in the storage's dtype or that of a `kind`."""
    numbers = (offset, *shape, *strides)
    if not all(type(each) is int and 0 <= each < 2**63 for each in numbers) or len(shape) != len(strides):
        raise ValueError('one of its tensors has an offset, a shape or strides that are none')
    if len(shape) > DIMENSIONS:
        raise ValueError(f'one of its tensors has {len(shape)} dimensions')
    if kind is not None and kind.name not in DTYPES:
        raise ValueError(f'one of its tensors is of {kind.name}')
    if storage.data is None:
        return None
    dtype = DTYPES[kind.name] if kind else storage.dtype
    elements = math.prod(shape)
    end = offset + sum((size - 1) * stride for size, stride in zip(shape, strides)) + 1 if elements else 0
    # Strides of 0 repeat what is there, so that the end alone would not bound a tensor.
    if elements > allowance.most or end * dtype.itemsize > len(storage.data):
        raise ValueError(
            f'a tensor of shape {shape}, strides {strides} at {offset} is larger than its storage'
        )
    if not elements:
        offset, strides = 0, (0,) * len(shape)
    steps = tuple(stride * dtype.itemsize for stride in strides)
    view = np.ndarray(shape, dtype, storage.data, offset * dtype.itemsize, steps)
    view.flags.writeable = False
    return view


def _table(allowance: Allowance, pairs: list | tuple = ()) -> dict[Any, Any]:
    """A table from pairs, as Python 2 has it."""
    allowance.spend(len(pairs))
    if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError('it makes a table of what are not pairs')
    return {key_of(key): value for key, value in pairs}


def _set(allowance: Allowance, items: list | tuple = ()) -> set[Any]:
    allowance.spend(len(items))
    return set(map(key_of, items))


def _bytes(allowance: Allowance, text: str, encoding: str) -> bytes:
    """Bytes, which pickles before Python 3 have as text."""
    if encoding != 'latin1':
        raise ValueError(f'it encodes a text as {encoding!r:.50}')
    allowance.spend(len(text))
    return text.encode('latin-1')


def _number_kind(allowance: Allowance, code: str, *notes: Any) -> np.dtype:
    if code not in NUMBERS:
        raise ValueError(f'it has a number of the kind {code!r:.50}')
    return np.dtype(code)


def _number(allowance: Allowance, dtype: np.dtype, data: bytes) -> Any:
    if len(data) != dtype.itemsize:
        raise ValueError(f'it has a {dtype} of {len(data)} bytes')
    return np.frombuffer(data, dtype).item()


def _first(allowance: Allowance, value: Any, *notes: Any) -> Any:
    return value


def _instance(allowance: Allowance, kind: Inert, *base: Any) -> Any:
    return call(kind, (), allowance)


_KEYS = frozenset((str, bytes, int, float, bool, type(None), Inert))
_TENSOR = (Storage, int, tuple, tuple, object, object)
# A name's counterpart, the kinds of its arguments, how many at least; more than these must be empty.
_CALLS = {
    'argparse.Namespace': (lambda _: Settings(), (), 0),
    'builtins.frozenset': (_set, (list,), 0),
    'builtins.set': (_set, (list,), 0),
    'collections.Counter': (_first, (dict,), 1),
    'collections.OrderedDict': (_table, (list,), 0),
    'collections.defaultdict': (lambda *_: {}, (Inert,), 0),
    'copyreg._reconstructor': (_instance, (Inert, Inert, object), 3),
    'numpy._core.multiarray.scalar': (_number, (np.dtype, bytes), 2),
    'numpy.dtype': (_number_kind, (str, object, object), 1),
    'torch.Size': (_first, (tuple,), 1),
    'torch._utils._rebuild_parameter': (_first, (object, object, object), 1),
    'torch._utils._rebuild_parameter_with_state': (_first, (object, object, object, object), 1),
    'torch._utils._rebuild_tensor': (_tensor, _TENSOR[:4], 4),
    'torch._utils._rebuild_tensor_v2': (_tensor, _TENSOR, 6),
    'torch._utils._rebuild_tensor_v3': (_tensor, (*_TENSOR, Inert), 7),
    '_codecs.encode': (_bytes, (str, str), 2),
}
