"""Cycles that the matrix units need for the products in an instruction, whatever surrounds them.

On TPU every product is a `convolution`, and dimensions of a product that are no single one of the
convolution's features are spatial: batches (the operand dilated so that each window meets one element),
rows, columns, sums. A unit keeps a square of one operand and streams rows of the other through it, so that
what is summed and what is kept are padded to its side.
"""

import math
import re

from jaxgen.estimate.chips import Chip
from jaxgen.estimate.hlo import Computation, Instruction, Module

ROWS = 8
# A float32 product is several of bfloat16, by what is asked for.
PASSES = {'highest': 6, 'high': 3}


def products(module: Module, instruction: Instruction) -> list[tuple[Computation, Instruction]]:
    """The convolutions and dots that a fusion executes, with the computations they stand in."""
    found, inside = [], module.of(instruction) if instruction.opcode == 'fusion' else None
    for one in inside.instructions if inside else ():
        if one.opcode in ('convolution', 'dot'):
            found.append((inside, one))
        found += products(module, one)
    return found


def matrix_cycles(chip: Chip, computation: Computation, product: Instruction) -> float:
    """Cycles of all matrix units together, without anything that may hold them up."""
    batch, rows, columns, depth = dimensions(computation, product)
    side, deep = chip.matrix, _padded(depth, chip.matrix)
    kept = min(_padded(rows, ROWS) * _padded(columns, side), _padded(rows, side) * _padded(columns, ROWS))
    speed, operand = chip.operations, computation.by_name[product.operands[0]].shapes[0]
    if operand.itemsize == 1:
        speed *= chip.peak_int8 / chip.peak
    elif operand.itemsize == 4:
        precision = re.search(r'operand_precision=\{(\w+)', product.attributes)
        speed /= PASSES.get(precision.group(1) if precision else '', 1)
    return 2 * batch * kept * deep / speed


def dimensions(computation: Computation, product: Instruction) -> tuple[int, int, int, int]:
    """A product as (batch, rows, columns, depth): how often, and which matrices."""
    left, right = (computation.by_name[name].shapes[0].dims for name in product.operands[:2])
    out = product.shapes[0].dims
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', product.attributes)
    if not labels:
        return _dot(left, right, out, product.attributes)
    inputs, kernel, result = labels.groups()
    batch, rows, columns, depth = 1, out[result.index('b')], out[result.index('f')], right[kernel.index('i')]
    window = re.search(r'window=\{([^}]*)\}', product.attributes)
    fields = dict(field.split('=') for field in window.group(1).split()) if window else {}
    for axis in sorted(set(kernel) - {'i', 'o'}):
        size, met, given = right[kernel.index(axis)], out[result.index(axis)], left[inputs.index(axis)]
        stride, dilation = (
            int(fields[name].split('x')[int(axis)]) if name in fields else 1
            for name in ('stride', 'lhs_dilate')
        )
        if size == 1:
            rows *= met
        elif met == 1:
            depth *= size
        elif given == 1:
            columns *= met
        elif dilation == size and stride == size - 1:
            batch *= met
        else:
            rows, depth = rows * met, depth * size
    groups = re.search(r'(?:feature|batch)_group_count=(\d+)', product.attributes)
    if groups:
        batch, columns = batch * int(groups.group(1)), max(1, columns // int(groups.group(1)))
    return batch, rows, columns, depth


def _dot(left: tuple, right: tuple, out: tuple, attributes: str) -> tuple[int, int, int, int]:
    def size(dims: tuple, name: str) -> int:
        axes = re.search(rf'{name}=\{{([\d,]*)\}}', attributes)
        return math.prod(dims[int(axis)] for axis in axes.group(1).split(',') if axis) if axes else 1

    depth, batch = size(left, 'lhs_contracting_dims'), size(left, 'lhs_batch_dims')
    rows = math.prod(left) // (depth * batch)
    return batch, rows, math.prod(out) // (batch * rows), depth


def _padded(size: int, side: int) -> int:
    return -(-size // side) * side
