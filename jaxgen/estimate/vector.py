"""Cycles that the vector units need for the arithmetic in an instruction.

The compiler's estimate of an instruction with a matmul knows little of what is fused into it: GELU by erf
makes such a fusion twice as long as estimated. Here each operation counts the slots it takes for a register
of 1024 elements, of which four go into a bundle.
"""

from jaxgen.estimate.hlo import Instruction, Module

REGISTER, SLOTS = 1024, 4
# Slots of a register's worth; what is not named is free. Transcendentals count what stands around the lookup.
COST = {
    **dict.fromkeys(('add', 'subtract', 'multiply', 'maximum', 'minimum', 'negate', 'abs', 'convert'), 1),
    **dict.fromkeys(('compare', 'select', 'and', 'or', 'xor', 'not', 'shift-left', 'floor'), 1),
    **dict.fromkeys(('shift-right-logical', 'shift-right-arithmetic', 'round-nearest-even', 'clamp'), 2),
    **dict.fromkeys(('tanh', 'rsqrt'), 3),
    'sqrt': 4,
    **dict.fromkeys(('exponential', 'log'), 5),
    **dict.fromkeys(('divide', 'logistic'), 6),
    **dict.fromkeys(('exponential-minus-one', 'log-plus-one', 'sine', 'cosine'), 8),
    **dict.fromkeys(('power', 'remainder', 'atan2'), 12),
}


def vector_cycles(module: Module, instruction: Instruction) -> float:
    """Bundles that the arithmetic of a fusion fills, if nothing else holds it up."""
    return _slots(module, instruction) / SLOTS


def _slots(module: Module, instruction: Instruction) -> float:
    if instruction.opcode != 'fusion':
        return 0.0
    inside, total = module.of(instruction), 0.0
    for one in inside.instructions:
        if one.opcode == 'reduce':
            total += inside.by_name[one.operands[0]].shapes[0].elements / REGISTER
        else:
            total += COST.get(one.opcode, 0) * one.shapes[0].elements / REGISTER + _slots(module, one)
    return total
