"""TPU slices by the names that `--mode=plan --topology=...` takes, as the clouds name them; and commands."""

import dataclasses
import itertools
import math
import shlex
import subprocess
import sys
from collections.abc import Sequence

FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')


def cubes(chips: int) -> tuple[str, ...]:
    """The shapes in three dimensions: parts of a cube of 4x4x4, and such cubes, up to so many chips."""
    sides = itertools.combinations_with_replacement(range(4, 25, 4), 3)
    whole = sorted((side for side in sides if math.prod(side) <= chips), key=math.prod)
    return ('2x2x1', '2x2x2', '2x2x4', '2x4x4', *('x'.join(map(str, side)) for side in whole))


# Cores a chip that a type's number counts, names, shapes, and how many chips one host alone may have.
GENERATIONS = {
    'v4': (2, 'v4', 'tpu-ubuntu2204-base', 'tpu-v4-podslice', cubes(4096), 4),
    'v5e': (1, 'v5litepod', 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice', FLAT, 8),
    'v5p': (2, 'v5p', 'v2-alpha-tpuv5', 'tpu-v5p-slice', cubes(6144), 4),
    'v6e': (1, 'v6e', 'v2-alpha-tpuv6e', 'tpu-v6e-slice', FLAT, 8),
}
HOST = 4  # chips a host has where a slice has several


@dataclasses.dataclass(frozen=True)
class Slice:
    """`family` and `runtime` are those of TPU VMs, `selector` of GKE's nodes, `shape` of both.

    `type` is the name by cores alone, which is for the shape nearest to a cube; '' where this is another one.
    """

    type: str
    family: str
    runtime: str
    selector: str
    shape: str
    chips: int
    hosts: int


def named(topology: str) -> Slice:
    """'v5e:4x8' as a slice."""
    generation, _, shape = topology.partition(':')
    sides = shape.split('x')
    if generation not in GENERATIONS or not all(side.isdecimal() and int(side) for side in sides):
        fail(f'--topology is {topology!r}; give one of {", ".join(GENERATIONS)} and a shape, as v5e:4x8.')
    cores, family, runtime, selector, shapes, alone = GENERATIONS[generation]
    dimensions = len(shapes[0].split('x'))
    if len(sides) != dimensions:
        example = 'x'.join('2' * dimensions)
        fail(f'--topology is {topology!r}; a {generation} has {dimensions} dimensions, as {example}.')
    chips = math.prod(map(int, sides))
    nearest = near(chips, shapes)
    if shape not in shapes:
        fail(f'--topology is {topology!r}; there is no such slice, the nearest is {generation}:{nearest}.')
    hosts = 1 if chips <= alone else chips // HOST
    kind = f'{family}-{chips * cores}' if shape == nearest else ''
    return Slice(kind, family, runtime, selector, shape, chips, hosts)


def near(chips: int, shapes: Sequence[str]) -> str:
    """The shape that is nearest in chips, and of several the one that is nearest to a cube."""
    sides = {shape: tuple(map(int, shape.split('x'))) for shape in shapes}
    return min(shapes, key=lambda shape: (abs(math.log(math.prod(sides[shape]) / chips)), max(sides[shape])))


def perform(commands: Sequence[Sequence[str]], dry_run: bool, given: str | None = None) -> None:
    """Run commands, each told before; the first that fails ends the script. `given` is their input."""
    for command in commands:
        print(shlex.join(command), file=sys.stdout if dry_run else sys.stderr, flush=True)
        if not dry_run and (code := subprocess.run(command, input=given, text=True).returncode):
            fail(f'{command[0]} failed ({code}): {shlex.join(command)}', code)


def fail(message: str, code: int = 2) -> None:
    """Leave with one line."""
    print(f'launch: {message}', file=sys.stderr)
    sys.exit(code)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The launcher's arguments, and after `--` those of jaxgen."""
    arguments = list(arguments)
    at = arguments.index('--') if '--' in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]
