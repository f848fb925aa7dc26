"""Seconds of a collective on the links of a slice.

Chips stand on a grid of two or three axes (a torus where an axis is long enough to be closed), and a group
of them uses the links along every axis that it spans, both ways: "How to Scale Your Model", the chapter on
sharded matrices. A group in several slices also sends between them over the data centre's network.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

from jaxgen.estimate.chips import Chip
from jaxgen.estimate.hlo import Instruction

KINDS = (
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'collective-permute',
    'ragged-all-to-all',
)
# Seconds that a hop takes, however little it carries.
HOP = 1e-6


@dataclasses.dataclass(frozen=True)
class Slice:
    """Where the chips of a mesh stand, in the order of its devices."""

    chip: Chip
    places: tuple[tuple[int, ...], ...]
    slices: tuple[int, ...]

    @classmethod
    def of(cls, chip: Chip, devices: Sequence[Any]) -> 'Slice':
        """The slice of devices in the order of their mesh."""
        places = tuple(
            tuple(getattr(one, 'coords', None) or (number, 0)) for number, one in enumerate(devices)
        )
        return cls(chip, places, tuple(getattr(one, 'slice_index', None) or 0 for one in devices))

    def lengths(self) -> tuple[int, ...]:
        """Chips along each axis of the grid."""
        return tuple(max(axis) + 1 for axis in zip(*self.places))


def group_of(instruction: Instruction, devices: int) -> list[int]:
    """The devices of the first group of a collective, or the ends of the longest hop of a permutation."""
    text = instruction.attributes
    pairs = re.search(r'source_target_pairs=\{(\{[\d,{} ]*\})\}', text)
    if pairs:
        return [int(one) for one in re.findall(r'\d+', pairs.group(1))]
    listed = re.search(r'replica_groups=\{\{([\d,]*)\}', text)
    if listed:
        return [int(one) for one in listed.group(1).split(',')]
    tiled = re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text)
    if tiled:
        shape, source, turned = (
            [int(n) for n in part.split(',')] if part else None for part in tiled.groups()
        )
        order = _walk(source, turned or range(len(source)))
        return order[: math.prod(shape[1:])]
    named = re.search(r'replica_groups=mesh\[([^\]]*)\](?:[^{]*)\{([^}]*)\}', text)
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named.group(1))}
        chosen = re.findall(r"'([^']+)'", named.group(2))
        steps = {name: math.prod(list(sizes.values())[i + 1 :]) for i, name in enumerate(sizes)}
        walks = [range(0, sizes[name] * steps[name], steps[name]) for name in chosen]
        return [sum(each) for each in itertools.product(*walks)]
    return list(range(devices))


def _walk(sizes: list[int], turned: Sequence[int]) -> list[int]:
    """Row-major numbers of an array of these sizes, read with its axes turned."""
    steps = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    return [
        sum(each) for each in itertools.product(*(range(0, sizes[a] * steps[a], steps[a]) for a in turned))
    ]


def seconds(grid: Slice, kind: str, size: float, group: Sequence[int]) -> float:
    """Seconds of a collective that leaves `size` bytes on a chip (a reduce-scatter: takes them from it)."""
    count = len(group)
    if kind == 'collective-permute':
        pairs = list(zip(group[::2], group[1::2]))
        return max((_hop(grid, size, *pair) for pair in pairs), default=0.0)
    if count < 2 or not size:
        return 0.0
    axes, between, hops = _ways(grid, group)
    within = sum(speed for _, speed in axes)
    share, factor = (count - 1) / count, 2 if kind == 'all-reduce' else 1
    if kind.endswith('all-to-all'):
        # Half of what each half of an axis has goes over its middle, which is `speed` wide for each line.
        wire = max((size * length / 4 / speed for length, speed in axes), default=0.0)
    else:
        wire = size * factor * share / within if within else 0.0
    if between > 1:
        members = count // between
        wire += size * factor * (between - 1) / between / members / grid.chip.dcn
    return wire + factor * hops * HOP


def between_slices(grid: Slice, kind: str, size: float) -> float:
    """Seconds, over the data centre's network, of a collective that each chip has `size` bytes for."""
    count = len(set(grid.slices))
    return (2 if kind == 'all-reduce' else 1) * size * (count - 1) / count / grid.chip.dcn + HOP


def _ways(grid: Slice, group: Sequence[int]) -> tuple[list[tuple[int, float]], int, int]:
    """([(chips, bytes a second into a chip) of each axis], slices, hops) of a group."""
    between = len({grid.slices[one] for one in group})
    members = [grid.places[one] for one in group if grid.slices[one] == grid.slices[group[0]]]
    axes, hops = [], 0
    for axis, length in enumerate(grid.lengths()):
        met = sorted({place[axis] for place in members})
        if len(met) < 2:
            continue
        closed = length % grid.chip.wrap == 0 and len(met) * (met[1] - met[0]) == length
        apart = (met[-1] - met[0]) / (len(met) - 1)
        axes.append((len(met), grid.chip.link * (2 if closed else 1) / apart))
        hops += (len(met) - 1) // (2 if closed else 1)
    return axes, between, max(1, hops)


def _hop(grid: Slice, size: float, source: int, target: int) -> float:
    if source == target:
        return 0.0
    if grid.slices[source] != grid.slices[target]:
        return size / grid.chip.dcn + HOP
    hops = 0
    for axis, length in enumerate(grid.lengths()):
        apart = abs(grid.places[source][axis] - grid.places[target][axis])
        hops += min(apart, length - apart) if length % grid.chip.wrap == 0 else apart
    return size * max(1, hops) / grid.chip.link + hops * HOP
