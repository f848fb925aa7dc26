"""Bytes that an instruction moves between HBM and the core.

Operands and results in the vector memory are free. A fusion that slices an operand reads the slice, one
that updates part of an operand in place writes the part, and what it only hands on it does not touch.
"""

from jaxgen.estimate.hlo import Computation, Instruction, Module, Shape

FREE = {
    *(
        'parameter',
        'constant',
        'tuple',
        'get-tuple-element',
        'bitcast',
        'after-all',
        'partition-id',
        'replica-id',
    ),
    *('opt-barrier', 'optimization-barrier', 'domain', 'add-dependency', 'get-dimension-size'),
}
SLICING = {'dynamic-slice', 'slice', 'gather'}
# Through these an element of the result is one of the operand: a slice behind them slices the operand.
TRANSPARENT = {'bitcast', 'convert', 'copy', 'reshape', 'transpose', 'negate', 'reduce-precision'}
HANDING_ON = {
    'tuple',
    'custom-call',
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'collective-permute',
}


def hbm_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    """The bytes read from and written to HBM by one instruction."""
    if instruction.opcode in FREE or instruction.opcode in ('while', 'conditional', 'call'):
        return 0.0
    operands = [computation.by_name[name] for name in instruction.operands if name in computation.by_name]
    if instruction.opcode == 'fusion':
        inside = module.of(instruction)
        return _fusion_reads(module, inside, operands) + _fusion_writes(module, inside, instruction)
    if instruction.opcode in ('dynamic-slice', 'slice', 'gather'):
        read = _in_hbm(operands[0].shapes) and sum(shape.bytes for shape in instruction.shapes)
        return read + _in_hbm(instruction.shapes)
    if instruction.opcode == 'dynamic-update-slice':
        return _in_hbm(operands[1].shapes) + _part(operands[1].shapes[0], instruction.shapes[0])
    if instruction.opcode == 'custom-call' and instruction.target in (
        'AllocateBuffer',
        'ZeroCrop',
        'Sharding',
    ):
        return 0.0
    return sum(_in_hbm(one.shapes) for one in operands) + _in_hbm(instruction.shapes)


def _in_hbm(shapes: tuple[Shape, ...]) -> float:
    return sum(shape.bytes for shape in shapes if not shape.space)


def _part(update: Shape, whole: Shape) -> float:
    """The bytes of an update, laid out as what it becomes a part of."""
    if whole.space:
        return 0.0
    return Shape(update.dtype, update.dims, whole.order or update.order, whole.tile).bytes


def _fusion_reads(module: Module, inside: Computation, operands: list[Instruction]) -> float:
    total = 0.0
    for number, operand in enumerate(operands):
        parameter = inside.parameters.get(number)
        whole = _in_hbm(operand.shapes)
        if parameter is not None and whole:
            total += min(whole, _read(module, inside, parameter, operand.shapes[0]))
    return total


def _read(module: Module, inside: Computation, source: Instruction, kept: Shape) -> float:
    """The bytes read of an operand `kept` in HBM, by those that use `source` in a fused computation."""
    total = 0.0
    for user in inside.users[source.name]:
        if user.opcode in SLICING and user.operands[0] == source.name:
            share = sum(shape.elements for shape in user.shapes) / max(1, kept.elements)
            total += share * kept.bytes
        elif user.opcode == 'dynamic-update-slice' and user.operands[0] == source.name:
            total += 0.0 if _updates(module, inside, user) else kept.bytes
        elif user.opcode in HANDING_ON:
            total += 0.0
        elif user.opcode == 'fusion':
            deeper = module.of(user)
            for number, name in enumerate(user.operands):
                if name == source.name and number in deeper.parameters:
                    total += _read(module, deeper, deeper.parameters[number], kept)
        elif user.opcode in TRANSPARENT and not user.root:
            total += _read(module, inside, user, kept)
        else:
            return kept.bytes
    return min(total, kept.bytes)


def _updates(module: Module, inside: Computation, update: Instruction) -> bool:
    """Whether an update is the fusion's result, and so made in place."""
    return any(update is one for one in map(lambda leaf: _origin(inside, leaf), _leaves(inside)))


def _leaves(inside: Computation) -> list[Instruction]:
    """What a fused computation returns, one instruction a leaf of its result."""
    root = inside.root
    return [inside.by_name[name] for name in root.operands] if root.opcode == 'tuple' else [root]


def _origin(inside: Computation, leaf: Instruction) -> Instruction:
    """The instruction that a result comes from, seen through changes of shape."""
    while leaf.opcode in ('bitcast', 'reshape', 'copy') and leaf.operands:
        leaf = inside.by_name[leaf.operands[0]]
    return leaf


def _fusion_writes(module: Module, inside: Computation, instruction: Instruction) -> float:
    leaves = _leaves(inside)
    if len(leaves) != len(instruction.shapes):
        return _in_hbm(instruction.shapes)
    return sum(_written(module, inside, leaf, shape) for leaf, shape in zip(leaves, instruction.shapes))


def _written(module: Module, inside: Computation, leaf: Instruction, shape: Shape) -> float:
    origin = _origin(inside, leaf)
    if shape.space or origin.opcode in ('parameter', 'custom-call', 'all-gather', 'get-tuple-element'):
        return 0.0
    if origin.opcode == 'dynamic-update-slice':
        return _part(inside.by_name[origin.operands[1]].shapes[0], shape)
    if origin.opcode == 'fusion' and len(origin.shapes) == 1:
        deeper = module.of(origin)
        return _written(module, deeper, _leaves(deeper)[0], shape)
    return shape.bytes
