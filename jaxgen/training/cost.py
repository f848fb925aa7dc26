"""What a program costs before it runs: operations, parameters, bytes a device.

Operations are those of matrix products and convolutions, two for each multiply-add, as is usual where model
FLOPs are quoted. They are counted in the traced program, because the compiler's own analysis counts a loop's
body once: a scan counts its body times its length, so a scanned and an unrolled network cost the same.

A count is of what the program executes. A gradient through rematerialised layers therefore includes their
second forward pass; for model FLOPs, trace the same step of a network built without remat (tracing needs no
memory).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


@dataclasses.dataclass(frozen=True)
class Count:
    """`flops` of a program; `open_loops` of its loops, with `open_flops` in them, have no known length and
    counted once."""

    flops: int
    open_loops: int = 0
    open_flops: int = 0

    def __add__(self, other: 'Count') -> 'Count':
        return Count(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other))))

    def times(self, repeats: int) -> 'Count':
        """The count of a program repeated."""
        return Count(self.flops * repeats, self.open_loops, self.open_flops * repeats)

    def turned(self, turns: int) -> int:
        """The operations where its open loops go round so many times."""
        return self.flops + (turns - 1) * self.open_flops


def count(function: Callable, *arguments: Any) -> Count:
    """The operations of a call; arguments may be shapes (ShapeDtypeStruct), nothing is computed."""
    # Compiler options of a jitted function are refused inside of another trace.
    jitted = function if hasattr(function, 'trace') else jax.jit(function)
    closed = jitted.trace(*arguments).jaxpr
    # What no result needs is not executed: unused captures, gradients nobody asked for.
    needed, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _count(needed)


def flops(function: Callable, *arguments: Any) -> int:
    """The operations of a call as a number; loops of unknown length count once (see `count`)."""
    return count(function, *arguments).flops


def parameters(tree: Any) -> int:
    """The number of elements in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def bytes_per_device(abstract_tree: Any, shardings: Any) -> int:
    """The bytes that one device holds of a tree placed so."""

    def size(leaf: Any, sharding: jax.sharding.Sharding) -> int:
        return math.prod(sharding.shard_shape(tuple(leaf.shape))) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, abstract_tree, shardings)))


def human(number: float) -> str:
    """Three digits and a decimal prefix: 675129632 is '675 M'."""
    prefixes = ['', ' k', ' M', ' G', ' T', ' P', ' E']
    while abs(number) >= 999.5 and len(prefixes) > 1:
        number /= 1000
        del prefixes[0]
    decimals = 0 if number == int(number) else max(0, 3 - len(str(int(abs(number)))))
    return f'{number:.{decimals}f}{prefixes[0]}'


def _count(jaxpr: core.Jaxpr) -> Count:
    total = Count(0)
    for equation in jaxpr.eqns:
        rule = _RULES.get(equation.primitive.name, _inside)
        total = total + rule(equation)
    return total


def _inside(equation: core.JaxprEqn) -> Count:
    """Calls of other programs (jit, remat, custom derivatives) count once; everything else is free."""
    total = Count(0)
    for inner in core.jaxprs_in_params(equation.params):
        total = total + _count(inner)
    return total


def _dot(equation: core.JaxprEqn) -> Count:
    (contracted, _), _ = equation.params['dimension_numbers']
    left = equation.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracted)
    return Count(2 * math.prod(equation.outvars[0].aval.shape) * depth)


def _convolution(equation: core.JaxprEqn) -> Count:
    kernel = equation.invars[1].aval.shape
    outputs = kernel[equation.params['dimension_numbers'].rhs_spec[0]]
    # A dilated input (transposed convolution) is mostly zeros that nobody has to multiply.
    zeros = math.prod(equation.params['lhs_dilation'])
    return Count(2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // (outputs * zeros))


def _scan(equation: core.JaxprEqn) -> Count:
    return _inside(equation).times(equation.params['length'])


def _while(equation: core.JaxprEqn) -> Count:
    inside = _inside(equation)
    return Count(inside.flops, inside.open_loops + 1, inside.flops)


def _cond(equation: core.JaxprEqn) -> Count:
    return max((_count(branch.jaxpr) for branch in equation.params['branches']), key=lambda c: c.flops)


def _shard_map(equation: core.JaxprEqn) -> Count:
    mesh, axes = equation.params['mesh'], equation.params['newly_manual_axes']
    return _inside(equation).times(math.prod(mesh.shape[name] for name in axes))


def _pallas(equation: core.JaxprEqn) -> Count:
    estimate = equation.params['cost_estimate']
    if estimate is not None:
        return Count(int(estimate.flops))
    grid = equation.params['grid_mapping'].grid
    known = [size for size in grid if isinstance(size, int)]
    return _inside(equation).times(math.prod(known)) + Count(0, len(grid) - len(known))


_RULES: dict[str, Callable[[core.JaxprEqn], Count]] = {
    'dot_general': _dot,
    'conv_general_dilated': _convolution,
    'scan': _scan,
    'while': _while,
    'cond': _cond,
    'shard_map': _shard_map,
    'pallas_call': _pallas,
}
