"""The pickle in a torch checkpoint, read by a stack machine that imports and calls nothing.

A pickle is a program (docs.python.org/3/library/pickletools): it names functions and asks to call them. Here
a name is only a name, and what checkpoints need of them has a counterpart in `rebuild`; any other name, and
any opcode that torch.save does not write, ends the reading. Nothing recurses, and nothing grows faster than
the pickle itself.
"""

import pickletools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from jaxgen.weights.rebuild import (
    STORAGES,
    UNTYPED,
    Allowance,
    Inert,
    Settings,
    Storage,
    call,
    key_of,
    named,
)

# Of one pickle; a tensor takes about 110 bytes and 30 opcodes of it.
LIMIT = 2**24  # bytes
OPCODES = 2**22

Find = Callable[[str, np.dtype | None, int], Storage]


class Stream(Protocol):
    """What a pickle is read from, in pieces and lines of a bounded length."""

    def read(self, count: int) -> bytes:
        """Up to `count` bytes."""

    def readline(self) -> bytes:
        """Bytes up to the end of the line."""

    def tell(self) -> int:
        """The position."""


def unpickle(stream: Stream, find: Find, most: int) -> Any:
    """The containers, numbers and arrays that a pickle describes; the stream is behind it then.

    `find(key, dtype, count)` gives the storages (dtype None: of bytes); a tensor has at most `most` elements.
    """
    machine = _Machine(find, Allowance(most))
    start = stream.tell()
    for number, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
        machine.allowance.read = position - start + 1
        if number > OPCODES or machine.allowance.read > LIMIT:
            raise ValueError(f'its pickle is longer than {LIMIT} bytes or {OPCODES} opcodes')
        try:
            machine.step(opcode.name, argument)
        except IndexError:
            raise ValueError(f'its pickle takes what is not there ({opcode.name} at {position})') from None
    if len(machine.stack) != 1 or machine.marks:
        raise ValueError('its pickle does not end with one thing')
    return machine.stack[0]


class _Machine:
    def __init__(self, find: Find, allowance: Allowance):
        self.find, self.allowance = find, allowance
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # what lay on the stack below each mark
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Do what an opcode says."""
        if opcode in _ARGUMENTS:
            self.stack.append(argument)
        elif opcode in _NEW:
            self.stack.append(_NEW[opcode]())
        elif opcode in _STEPS:
            _STEPS[opcode](self, argument)
        else:
            raise ValueError(f'it uses the opcode {opcode} {argument!r:.100}, which no checkpoint needs')

    def above_mark(self) -> list[Any]:
        """Take what lies above the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def last(self, count: int) -> list[Any]:
        """Take the last `count` things, the lowest first."""
        return [self.stack.pop() for _ in range(count)][::-1]


def _ignore(machine: _Machine, _: Any) -> None:
    """What only says how the pickle was written."""


def _mark(machine: _Machine, _: None) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _tuple(machine: _Machine, _: None) -> None:
    items = tuple(machine.above_mark())
    machine.stack.append(items)


def _extend(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) is list:
        target.extend(items)
    elif type(target) is set:
        target.update(map(key_of, items))
    elif not isinstance(target, Inert):
        raise ValueError(f'it appends to a {type(target).__name__}')


def _set_items(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, Inert | dict) or len(items) % 2:
        raise ValueError(f'it sets {len(items)} keys and values of a {type(target).__name__}')
    if isinstance(target, dict):
        target.update(zip(map(key_of, items[::2]), items[1::2]))


def _put(machine: _Machine, index: int) -> None:
    if index >= machine.allowance.read:  # picklers count from 0, and there is an opcode to each
        raise ValueError(f'it keeps something as number {index} of at most {machine.allowance.read}')
    machine.memo[index] = machine.stack[-1]


def _get(machine: _Machine, index: int) -> None:
    if index not in machine.memo:
        raise ValueError(f'it asks for number {index} of what it kept, which is not there')
    machine.stack.append(machine.memo[index])


def _global(machine: _Machine, name: str) -> None:
    machine.stack.append(named(name.replace(' ', '.')))


def _stack_global(machine: _Machine, _: None) -> None:
    module, name = machine.last(2)
    if type(name) is not str or type(module) is not str:
        raise ValueError('it names a function by what is no name')
    machine.stack.append(named(f'{module}.{name}'))


def _reduce(machine: _Machine, _: None) -> None:
    function, arguments = machine.last(2)
    machine.stack.append(call(function, arguments, machine.allowance))


def _build(machine: _Machine, _: None) -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    if isinstance(target, Settings) and type(state) is dict:
        machine.allowance.spend(len(state))
        target.update(state)
    elif isinstance(target, np.dtype):
        if type(state) is not tuple or not any(state[1:2] == (order,) for order in ('<', '|')):
            raise ValueError('it has numbers of another byte order')
    elif not isinstance(target, Inert | dict):  # an ordered table's state is notes on the modules' versions
        raise ValueError(f'it sets attributes of a {type(target).__name__}')


def _storage(machine: _Machine, _: None) -> None:
    """('storage', type, key, device, number of elements), and in the old layout a part of another one."""
    asked = machine.stack.pop()
    kinds = (str, Inert, str, str, int)
    if type(asked) is not tuple or len(asked) not in (5, 6) or not all(map(isinstance, asked, kinds)):
        raise ValueError('it asks for a storage by what describes none')
    word, kind, key, _, count = asked[:5]
    if word != 'storage' or count < 0 or (kind.name not in STORAGES and kind.name != UNTYPED):
        raise ValueError(f'it asks for a storage by {word!r:.50}, {kind.name}, {count}')
    if asked[5:] not in ((), (None,)):
        raise ValueError('one of its storages is a part of another; save it again with a later torch')
    machine.stack.append(machine.find(key, STORAGES.get(kind.name), count))


_ARGUMENTS = frozenset(
    (
        *('BININT', 'BININT1', 'BININT2', 'LONG1', 'LONG4', 'BINFLOAT'),
        *('BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'BINSTRING', 'SHORT_BINSTRING'),
        *('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8'),
    )
)
_NEW: dict[str, Callable[[], Any]] = {
    'NONE': lambda: None,
    'NEWTRUE': lambda: True,
    'NEWFALSE': lambda: False,
    'EMPTY_LIST': list,
    'EMPTY_DICT': dict,
    'EMPTY_SET': set,
    'EMPTY_TUPLE': tuple,
}
_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    'PROTO': _ignore,
    'FRAME': _ignore,
    'STOP': _ignore,
    'MARK': _mark,
    'POP': lambda machine, _: machine.stack.pop(),
    'POP_MARK': lambda machine, _: machine.above_mark(),
    'TUPLE': _tuple,
    'TUPLE1': lambda machine, _: machine.stack.append(tuple(machine.last(1))),
    'TUPLE2': lambda machine, _: machine.stack.append(tuple(machine.last(2))),
    'TUPLE3': lambda machine, _: machine.stack.append(tuple(machine.last(3))),
    'APPEND': lambda machine, _: _extend(machine, machine.last(1)),
    'APPENDS': lambda machine, _: _extend(machine, machine.above_mark()),
    'ADDITEMS': lambda machine, _: _extend(machine, machine.above_mark()),
    'SETITEM': lambda machine, _: _set_items(machine, machine.last(2)),
    'SETITEMS': lambda machine, _: _set_items(machine, machine.above_mark()),
    'BINPUT': _put,
    'LONG_BINPUT': _put,
    'MEMOIZE': lambda machine, _: _put(machine, len(machine.memo)),
    'BINGET': _get,
    'LONG_BINGET': _get,
    'GLOBAL': _global,
    'STACK_GLOBAL': _stack_global,
    'REDUCE': _reduce,
    'NEWOBJ': _reduce,
    'BUILD': _build,
    'BINPERSID': _storage,
}
