"""TPU slices by the names that `--mode=plan --topology=...` takes, as the clouds name them; and commands."""

import dataclasses
import math
import shlex
import subprocess
import sys
from collections.abc import Sequence

# Cores a chip that a type's number counts, names, dimensions, and how many chips one host alone may have.
GENERATIONS = {
    'v4': (2, 'v4', 'tpu-ubuntu2204-base', 'tpu-v4-podslice', 3, 4),
    'v5e': (1, 'v5litepod', 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice', 2, 8),
    'v5p': (2, 'v5p', 'v2-alpha-tpuv5', 'tpu-v5p-slice', 3, 4),
    'v6e': (1, 'v6e', 'v2-alpha-tpuv6e', 'tpu-v6e-slice', 2, 8),
}
HOST = 4  # chips a host has where a slice has several


@dataclasses.dataclass(frozen=True)
class Slice:
    """`type` and `runtime` are those of TPU VMs, `selector` and `shape` those of GKE's nodes."""

    type: str
    runtime: str
    selector: str
    shape: str
    chips: int
    hosts: int


def named(topology: str) -> Slice:
    """'v5e:4x8' as a slice."""
    generation, _, shape = topology.partition(':')
    sides = shape.split('x')
    if generation not in GENERATIONS or not all(side.isdigit() and int(side) for side in sides):
        fail(f'--topology is {topology!r}; give one of {", ".join(GENERATIONS)} and a shape, as v5e:4x8.')
    cores, family, runtime, selector, dimensions, alone = GENERATIONS[generation]
    if len(sides) != dimensions:
        example = 'x'.join('2' * dimensions)
        fail(f'--topology is {topology!r}; a {generation} has {dimensions} dimensions, as {example}.')
    chips = math.prod(map(int, sides))
    hosts = 1 if chips <= alone else chips // HOST
    if chips > alone and chips % HOST:
        fail(f'--topology is {topology!r}, {chips} chips; hosts have {HOST} each.')
    return Slice(f'{family}-{chips * cores}', runtime, selector, shape, chips, hosts)


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
