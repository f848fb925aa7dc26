"""Seconds of a scheduled program: what the core does, what it waits for, and what goes on beside it.

Each instruction takes the larger of its cycles and its bytes from and to HBM. What was started and is
waited for later (`*-start`, `*-done`) goes on its own queue, copies on one and collectives on another, in
their order; only the part that nothing covers is waited for.
"""

import dataclasses
import re
from collections.abc import Mapping

from jaxgen.estimate import bundles, matmul, network, traffic, vector
from jaxgen.estimate.chips import Chip
from jaxgen.estimate.hlo import Computation, Instruction, Module, Shape

SHARES = ('matmul', 'vector', 'memory', 'network')
PALLAS = 'tpu_custom_call'
# What goes between slices is handed to the hosts and comes back from them.
MEGASCALE = re.compile('_xla_megascale_transfer_type="(.*?)"')
# Less arithmetic than this share of a matmul's cycles leaves the matmul alone.
ALONE = 0.005


@dataclasses.dataclass
class Spent:
    """Seconds by what they went into, how often each collective ran, and what could not be counted.

    `hidden` are seconds of collectives that something else covered. `collectives` by (kind, bytes, devices
    of a group): count, seconds, seconds waited for.
    """

    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(SHARES, 0.0))
    hidden: float = 0.0
    collectives: dict[tuple, list[float]] = dataclasses.field(default_factory=dict)
    uncounted: dict[str, int] = dataclasses.field(default_factory=dict)
    open_loops: int = 0

    @property
    def total(self) -> float:
        """All seconds."""
        return sum(self.seconds.values())

    def add(self, other: 'Spent', times: float = 1) -> None:
        """Take in what another piece of the program took, so many times."""
        for share, seconds in other.seconds.items():
            self.seconds[share] += times * seconds
        self.hidden += times * other.hidden
        for key, row in other.collectives.items():
            mine = self.collectives.setdefault(key, [0.0, 0.0, 0.0])
            mine[:] = [a + times * b for a, b in zip(mine, row)]
        for name, count in other.uncounted.items():
            self.uncounted[name] = self.uncounted.get(name, 0) + int(times * count)
        self.open_loops += other.open_loops

    def collective(self, key: tuple, seconds: float, waited: float) -> None:
        """Note one collective."""
        row = self.collectives.setdefault(key, [0.0, 0.0, 0.0])
        row[:] = [row[0] + 1, row[1] + seconds, row[2] + waited]
        self.hidden += seconds - waited
        self.seconds['network'] += waited


@dataclasses.dataclass(frozen=True)
class Machine:
    """What runs the program: a chip, its slice, seconds of kernels by name, and how often open loops turn."""

    chip: Chip
    grid: network.Slice
    kernels: Mapping[str, float]
    turns: int = 1


@dataclasses.dataclass
class _Started:
    """Something on a queue: when it ends, how long it takes, and which collective it is."""

    ends: float
    seconds: float
    key: tuple | None


def spent(machine: Machine, module: Module, computation: Computation | None = None) -> Spent:
    """Where the time of a computation goes (default: of the whole program)."""
    return _Walk(machine, module).of(computation or module.entry)


class _Walk:
    """One walk over a program; what a computation takes is counted once."""

    def __init__(self, machine: Machine, module: Module) -> None:
        self.machine, self.module = machine, module
        self.known: dict[str, Spent] = {}
        # Fused computations that cut something out.
        self.fused = {
            one.called('calls')
            for computation in module.computations.values()
            for one in computation.instructions
            if one.opcode == 'fusion'
            and any(each.opcode == 'dynamic-slice' for each in module.of(one).instructions)
        }
        # Collectives that go on beside the core; what begins one before a loop may carry it on within.
        self.beside = {
            begun
            for computation in module.computations.values()
            for one in computation.instructions
            if (begun := _begins(module, one)) is not None
        }

    def of(self, computation: Computation) -> Spent:
        if computation.name not in self.known:
            self.known[computation.name] = self._walked(computation)
        return self.known[computation.name]

    def _walked(self, computation: Computation) -> Spent:
        result, started, free = Spent(), {}, {'copies': 0.0, 'network': 0.0}
        for one in computation.instructions:
            begun, ended = _begins(self.module, one), _ends(self.module, one)
            if begun is not None:
                key, seconds = self._asynchronous(computation, one)
                queue = 'network' if key else 'copies'
                free[queue] = max(free[queue], result.total) + seconds
                started[begun] = _Started(free[queue], seconds, key)
            elif ended is not None:
                name = ended if ended in started else _beginning(computation, one, started)
                if name in started:
                    self._wait(result, started.pop(name))
            elif (
                moved := _collective_in(self.module, one)
            ) and f'channel {moved.channel}' not in self.beside:
                key, seconds = self._collective(self.module.of(one), moved)
                result.collective(key, seconds, seconds)
            else:
                self._at_once(result, computation, one)
        for begun in started.values():  # what nothing here waits for ends with it, at the latest
            self._wait(result, begun)
        return result

    def _wait(self, result: Spent, begun: _Started) -> None:
        waited = min(begun.seconds, max(0.0, begun.ends - result.total))
        if begun.key is None:
            result.seconds['memory'] += waited
        else:
            result.collective(begun.key, begun.seconds, waited)

    def _at_once(self, result: Spent, computation: Computation, one: Instruction) -> None:
        """An instruction that the core itself is busy with."""
        if one.opcode == 'while':
            turns = trips(self.module, computation, one)
            result.open_loops += turns is None
            result.add(self.of(self.module.of(one, 'body')), self.machine.turns if turns is None else turns)
        elif one.opcode == 'conditional':
            branches = [self.of(self.module.computations[name]) for name in one.branches]
            result.add(max(branches, key=lambda branch: branch.total))
        elif one.opcode == 'call':
            result.add(self.of(self.module.of(one, 'to_apply')))
        elif one.opcode in network.KINDS:
            key, seconds = self._collective(computation, one)
            result.collective(key, seconds, seconds)
        elif one.opcode == 'custom-call' and one.target == PALLAS:
            self._kernel(result, computation, one)
        else:
            self._instruction(result, computation, one)

    def _instruction(self, result: Spent, computation: Computation, one: Instruction) -> None:
        chip = self.machine.chip
        moving = traffic.hbm_bytes(self.module, computation, one) / chip.bandwidth
        found, cycles = matmul.products(self.module, one), one.cycles or 0
        arithmetic = vector.vector_cycles(self.module, one)
        if found:
            least = sum(matmul.matrix_cycles(chip, *each) for each in found)
            share = chip.fused if arithmetic > ALONE * least else chip.alone
            cycles = max(least + share * max(0.0, cycles - least), chip.busy * arithmetic)
        else:
            cycles = max(chip.loops * cycles, arithmetic)
        computing = cycles / chip.clock
        share = 'memory' if moving > computing else 'matmul' if found else 'vector'
        result.seconds[share] += max(moving, computing)

    def _kernel(self, result: Spent, computation: Computation, one: Instruction) -> None:
        """A Pallas call: seconds given by its name or counted from its bundles, or its author's claim."""
        chip = self.machine.chip
        moving = traffic.hbm_bytes(self.module, computation, one) / chip.bandwidth
        seconds = self.machine.kernels.get(kernel_name(one))
        if seconds is None:
            seconds = bundles.kernel_seconds(f'{one.name} {one.attributes}', chip)
        if seconds is None:
            claimed = re.search(r'"cost_estimate":\{[^}]*?"flops":"?(\d+)', one.attributes)
            result.uncounted[kernel_name(one)] = result.uncounted.get(kernel_name(one), 0) + 1
            seconds = int(claimed.group(1)) / chip.peak if claimed else 0.0
        result.seconds['memory' if moving > seconds else 'matmul'] += max(moving, seconds)

    def _asynchronous(self, computation: Computation, one: Instruction) -> tuple[tuple | None, float]:
        """(which collective, seconds) of what an instruction starts; copies are no collective."""
        if one.opcode == 'fusion':
            return self._collective(self.module.of(one), _collective_in(self.module, one))
        if one.opcode.removesuffix('-start') in network.KINDS:
            return self._collective(computation, one)
        if (between := MEGASCALE.search(one.attributes)) is not None:
            kind, size = between.group(1).lower().replace('_', '-'), _packed(one.shapes[0])
            seconds = network.between_slices(self.machine.grid, kind, size)
            return (f'{kind} between slices', int(size), len(set(self.machine.grid.slices))), seconds
        arrays = [shape for shape in one.shapes if shape.elements > 1]
        moved = min((shape.bytes for shape in arrays), default=0.0)
        if all(shape.space for shape in arrays):
            return None, 0.0
        return None, moved / self.machine.chip.bandwidth

    def _collective(self, computation: Computation, one: Instruction) -> tuple[tuple, float]:
        kind = one.opcode.removesuffix('-start')
        operands = [computation.by_name[name] for name in one.operands if name in computation.by_name]
        given = sum(_packed(shape) for each in operands for shape in each.shapes)
        group = network.group_of(one, len(self.machine.grid.places))
        if kind == 'all-reduce' and computation.name in self.fused:  # with the slice beside it
            kind = 'reduce-scatter'
        size = given * len(group) if kind == 'all-gather' else given
        devices = len(group) if kind != 'collective-permute' else 2
        return (kind, int(size), devices), network.seconds(self.machine.grid, kind, size, group)


def kernel_name(call: Instruction) -> str:
    """The name of a Pallas kernel: that which `pl.pallas_call` was given, or its function's."""
    return re.sub(r'(\.(clone|\d+))+$', '', call.name)


def _packed(shape: Shape) -> float:
    return shape.elements * shape.itemsize


def _begins(module: Module, one: Instruction) -> str | None:
    """The name under which an instruction starts something, if it does."""
    if one.opcode.endswith('-start') or (one.opcode == 'recv' and MEGASCALE.search(one.attributes)):
        return one.name
    return _chain(module, one, 'AsyncCollectiveStart')


def _ends(module: Module, one: Instruction) -> str | None:
    """The name of what an instruction waits for, if it does."""
    if one.opcode.endswith('-done') and one.opcode != 'send-done':
        return one.operands[0]
    return _chain(module, one, 'AsyncCollectiveDone')


def _chain(module: Module, one: Instruction, target: str) -> str | None:
    """The channel of a collective that a fusion begins or ends."""
    inside = module.of(one) if one.opcode == 'fusion' else None
    if inside is None or not any(each.target == target for each in inside.instructions):
        return None
    moved = _collective_in(module, one)
    return f'channel {moved.channel}' if moved else None


def _collective_in(module: Module, one: Instruction) -> Instruction | None:
    """The collective that a fusion holds: one that it begins, ends, carries on or, with its slice, is."""
    inside = module.of(one) if one.opcode == 'fusion' else None
    return (
        next((each for each in inside.instructions if each.opcode in network.KINDS), None) if inside else None
    )


def _beginning(computation: Computation, one: Instruction, started: Mapping[str, _Started]) -> str:
    """What a `done` waits for, where its operand was handed through other instructions."""
    name = one.operands[0]
    while name not in started and name in computation.by_name and computation.by_name[name].operands:
        name = computation.by_name[name].operands[0]
    return name


def trips(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often a loop turns, where the program says so: a counter compared with a constant."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
        return int(known.group(1))
    condition, body = module.of(loop, 'condition'), module.of(loop, 'body')
    test = condition.root
    if test.opcode == 'fusion':
        inside = module.of(test)
        test, outside = (
            inside.root,
            dict(zip((p.name for _, p in sorted(inside.parameters.items())), test.operands)),
        )
    else:
        inside, outside = condition, {}
    if test.opcode != 'compare':
        return None
    start = computation.by_name.get(loop.operands[0])
    sides = [_value(inside, outside, condition, start, computation, name) for name in test.operands]
    counter, bound = sides if 'direction=L' in test.attributes else sides[::-1]
    if counter[1] is None or bound[0] is None:
        return None
    first = counter[0] or 0
    last = bound[0] + ('direction=LE' in test.attributes or 'direction=GE' in test.attributes)
    return max(0, -(-(last - first) // _step(module, body, counter[1])))


def _value(
    inside: Computation,
    outside: Mapping[str, str],
    condition: Computation,
    start: Instruction | None,
    caller: Computation,
    name: str,
) -> tuple[int | None, int | None]:
    """(the number, which element of the loop's state) that one side of a loop's test is."""
    one = inside.by_name[name]
    if one.opcode == 'parameter' and name in outside:
        one = condition.by_name[outside[name]]
    if one.opcode == 'constant':
        return _constant(one), None
    if one.opcode != 'get-tuple-element':
        return None, None
    element = int(re.search(r'index=(\d+)', one.attributes).group(1))
    if start is None or start.opcode != 'tuple':
        return None, element
    return _followed(caller, start.operands[element]), element


def _followed(computation: Computation, name: str) -> int | None:
    one = computation.by_name.get(name)
    while one is not None and one.opcode in ('copy', 'bitcast', 'convert') and one.operands:
        one = computation.by_name.get(one.operands[0])
    return _constant(one) if one is not None and one.opcode == 'constant' else None


def _constant(one: Instruction) -> int | None:
    return int(one.arguments) if re.fullmatch(r'-?\d+', one.arguments) else None


def _step(module: Module, body: Computation, element: int) -> int:
    """What a loop's counter grows by."""
    if body.root.opcode != 'tuple':
        return 1
    one, where = body.by_name[body.root.operands[element]], body
    while one.opcode in ('copy', 'bitcast') and one.operands:
        one = where.by_name[one.operands[0]]
    if one.opcode == 'add':
        numbers = [_followed(where, name) for name in one.operands]
        return next((number for number in numbers if number), 1)
    return 1
