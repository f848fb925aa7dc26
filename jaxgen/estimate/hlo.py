"""The scheduled program of a TPU executable, read from its text (`compiled.as_text()`).

A module is computations, each a list of instructions in the order they are issued; a shape says with its
layout how it is tiled, and in which memory it lies.
"""

import dataclasses
import functools
import math
import re

BYTES = {
    'pred': 1,
    'bf16': 2,
    'f16': 2,
    'f32': 4,
    'f64': 8,
    'c64': 8,
    's4': 0.5,
    'u4': 0.5,
    's2': 0.25,
    'u2': 0.25,
}
VMEM, SMEM = 1, 6


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: `order` are its dimensions from the fastest on, `space` 0 is HBM, 1 the vector memory."""

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @functools.cached_property
    def itemsize(self) -> float:
        """Bytes of an element."""
        known = BYTES.get(self.dtype)
        if known is None:
            digits = re.match(r'[a-z]+(\d+)', self.dtype)
            known = int(digits.group(1)) / 8 if digits else 0
        return known

    @functools.cached_property
    def elements(self) -> int:
        """The number of elements, without padding."""
        return math.prod(self.dims)

    @functools.cached_property
    def bytes(self) -> float:
        """The bytes it takes in memory, its tiles padded."""
        sizes = [self.dims[axis] for axis in self.order] if self.order else list(self.dims[::-1])
        for i, side in enumerate(reversed(self.tile)):
            if i < len(sizes):
                sizes[i] = -(-sizes[i] // side) * side
        return math.prod(sizes) * self.itemsize


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`name = shapes opcode(operands), attributes`; a tuple has several shapes, its tuples flattened."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool
    arguments: str

    @functools.cached_property
    def cycles(self) -> int | None:
        """The compiler's own estimate, where it made one."""
        return _number(r'"estimated_cycles":"(\d+)"', self.attributes)

    @functools.cached_property
    def channel(self) -> int | None:
        """What the parts of one asynchronous collective have in common."""
        return _number(r'channel_id=(\d+)', self.attributes)

    def called(self, role: str) -> str | None:
        """The computation it calls as `calls`, `body`, `condition`, `to_apply`."""
        found = re.search(rf'\b{role}=%([\w.\-]+)', self.attributes)
        return found.group(1) if found else None

    @functools.cached_property
    def branches(self) -> tuple[str, ...]:
        """The computations of a conditional."""
        listed = re.search(r'branch_computations=\{([^}]*)\}', self.attributes)
        if listed:
            return tuple(re.findall(r'%([\w.\-]+)', listed.group(1)))
        return tuple(re.findall(r'(?:true|false)_computation=%([\w.\-]+)', self.attributes))

    @functools.cached_property
    def target(self) -> str:
        """What a custom call calls."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found.group(1) if found else ''


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in their order, by name, and who uses whom."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Its instructions by name."""
        return {one.name: one for one in self.instructions}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Those that use an instruction's result."""
        found: dict[str, list[Instruction]] = {one.name: [] for one in self.instructions}
        for one in self.instructions:
            for name in dict.fromkeys(one.operands):
                if name in found:
                    found[name].append(one)
        return found

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose result it returns."""
        return next((one for one in self.instructions if one.root), self.instructions[-1])

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Its parameters by number."""
        return {int(one.arguments): one for one in self.instructions if one.opcode == 'parameter'}


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations by name, and the one that is entered."""

    computations: dict[str, Computation]
    entry: Computation

    def of(self, instruction: Instruction, role: str = 'calls') -> Computation | None:
        """The computation that an instruction calls."""
        return self.computations.get(instruction.called(role) or '')


def parse(text: str) -> Module:
    """Read a module."""
    computations: dict[str, Computation] = {}
    entry, name, lines = None, None, []
    for line in text.splitlines():
        if name is None:
            head = _HEAD.match(line)
            if head:
                name, lines = head.group(2), []
                entry = name if head.group(1) else entry
        elif line.startswith('}'):
            computations[name] = Computation(name, tuple(lines))
            name = None
        else:
            one = _instruction(line)
            if one is not None:
                lines.append(one)
    if entry is None:
        raise ValueError('this text holds no ENTRY computation; give the text of a compiled module.')
    return Module(computations, computations[entry])


_HEAD = re.compile(r'^(ENTRY )?%([\w.\-]+) \(.*\{\s*$')
_NAME = re.compile(r'^\s+(ROOT )?%([\w.\-]+) = ')
_OPCODE = re.compile(r'\s*([a-z][\w\-]*)\(')
_ARRAY = re.compile(r'([a-z][a-z0-9]*)\[([\d,<=]*)\](?:\{([^{}]*)\})?')


def _instruction(line: str) -> Instruction | None:
    head = _NAME.match(line)
    if not head:
        return None
    start = head.end()
    stop = _closing(line, start) if line[start] == '(' else line.index(' ', start)
    opcode = _OPCODE.match(line, stop)
    if not opcode:
        return None
    end = _closing(line, opcode.end() - 1)
    arguments = line[opcode.end() : end - 1]
    return Instruction(
        name=head.group(2),
        shapes=shapes(line[start:stop]),
        opcode=opcode.group(1),
        operands=tuple(re.findall(r'%([\w.\-]+)', arguments)),
        attributes=line[end:],
        root=bool(head.group(1)),
        arguments=arguments,
    )


def _closing(line: str, start: int) -> int:
    """Just behind the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(line)):
        if line[i] == '(':
            depth += 1
        elif line[i] == ')':
            depth -= 1
            if not depth:
                return i + 1
    raise ValueError(f'a bracket is not closed in the line {line[:200]}')


@functools.lru_cache(maxsize=65536)
def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a shape such as `(f32[4,128]{1,0:T(4,128)S(1)}, s32[])`."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(text):
        order, _, rest = layout.partition(':')
        tile = re.search(r'T\((\d[\d,]*)\)', rest)
        space = re.search(r'S\((\d+)\)', rest)
        found.append(
            Shape(
                dtype,
                _integers(dims.replace('<=', '')),
                _integers(order),
                _integers(tile.group(1)) if tile else (),
                int(space.group(1)) if space else 0,
            )
        )
    return tuple(found)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(',') if part)


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else None
