"""Seconds, memory and traffic of a program compiled for a TPU, estimated from the compiler's own schedule.

Made for comparing programs on chips that are not there: an estimate, not a promise. `chips` says what a
chip can do, `hlo` reads the program, `traffic`, `matmul` and `network` count its instructions, `timeline`
puts them together, `topology` gives the devices of a slice to compile for.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxgen.estimate.chips import Chip, chip
from jaxgen.estimate.hlo import parse
from jaxgen.estimate.network import Slice
from jaxgen.estimate.timeline import Machine, Spent, spent

LISTED = 12


@dataclasses.dataclass(frozen=True)
class Collective:
    """Alike collectives of one call: `bytes` each leaves on (or takes from) a chip, `exposed` what they
    were waited for.
    """

    kind: str
    devices: int
    count: int
    bytes: int
    seconds: float
    exposed: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one call of a program takes on each chip.

    `seconds` are the sum of `matmul`, `vector`, `memory` and `network`: what the core computes, what HBM
    holds up, what collectives are waited for; `network_hidden` are collectives that something else covers.
    `uncounted` are kernels that nobody knows the time of (counted at their own claim), `open_loops` loops
    whose length only the call says.
    """

    chip: str
    seconds: float
    matmul: float
    vector: float
    memory: float
    network: float
    network_hidden: float
    arguments: int
    temporaries: int
    peak: int
    hbm: int
    collectives: tuple[Collective, ...]
    uncounted: Mapping[str, int]
    open_loops: int
    mfu: float | None = None

    @property
    def fits(self) -> bool:
        """Whether the memory of a chip is enough."""
        return self.peak <= self.hbm

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {**dataclasses.asdict(self), 'fits': self.fits}

    def table(self) -> str:
        """The estimate for people."""
        return '\n'.join(f'{name:22}{value}' for name, value in lines(self))


def estimate(
    compiled: Any,
    on: Chip | str,
    model_flops_per_chip: float | None = None,
    *,
    kernels: Mapping[str, float] | None = None,
    turns: int = 1,
) -> Estimate:
    """Estimate one call of a compiled program (`jitted.lower(...).compile()`).

    `model_flops_per_chip` are operations without any recomputing, for the MFU. `kernels` are seconds of
    Pallas calls by their name; `turns` how often a loop goes round whose length is an argument of the call,
    as a sampler's steps.
    """
    on = chip(on) if isinstance(on, str) else on
    machine = Machine(on, Slice.of(on, devices_of(compiled)), kernels or {}, turns)
    found, memory = spent(machine, parse(compiled.as_text())), compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Estimate(
        chip=on.name,
        seconds=found.total,
        **found.seconds,
        network_hidden=found.hidden,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        hbm=on.hbm,
        collectives=collectives(found),
        uncounted=found.uncounted,
        open_loops=found.open_loops,
        mfu=model_flops_per_chip and model_flops_per_chip / (found.total * on.peak),
    )


def collectives(found: Spent) -> tuple[Collective, ...]:
    """The collectives of a program, those that take longest first."""
    rows = (
        Collective(kind, devices, round(count), size, seconds, exposed)
        for (kind, size, devices), (count, seconds, exposed) in found.collectives.items()
    )
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def devices_of(compiled: Any) -> Sequence[Any]:
    """The devices of a compiled program in the order of its partitions."""
    places = [each for each in jax.tree.leaves(compiled.input_shardings) if hasattr(each, 'device_set')]
    for place in places:
        if hasattr(place, 'mesh') and getattr(place.mesh, 'devices', None) is not None:
            return list(place.mesh.devices.flat)
    return sorted(places[0].device_set, key=lambda one: one.id) if places else []


def lines(found: Estimate | Mapping[str, Any]) -> list[tuple[str, str]]:
    """An estimate, or its dictionary, as names and values."""
    about = found if isinstance(found, Mapping) else found.as_dict()
    whole = about['seconds']

    def share(name: str) -> str:
        part = about[name] / whole if whole else 0.0
        return f'{1e3 * about[name]:.3g} ms ({part:.0%})'

    rows = [('estimated time', f'{1e3 * whole:.4g} ms on {about["chip"]}')]
    if about['mfu'] is not None:
        rows.append(('estimated MFU', f'{about["mfu"]:.1%}'))
    rows += [(name, share(name)) for name in ('matmul', 'vector', 'memory')]
    rows.append(('network', f'{share("network")} waited for, {1e3 * about["network_hidden"]:.3g} ms hidden'))
    size = ', '.join(f'{name} {about[name] / 1e9:.2f}' for name in ('arguments', 'temporaries', 'peak'))
    verdict = 'fits' if about['fits'] else 'does not fit'
    rows.append(('HBM a chip', f'{size} of {about["hbm"] / 1e9:.1f} GB: {verdict}'))
    for row in about['collectives'][:LISTED]:
        took = f'{1e3 * row["seconds"]:.3g} ms, {1e3 * row["exposed"]:.3g} of it waited for'
        what = f'{row["kind"]} of {row["bytes"] / 1e6:.3g} MB over {row["devices"]}'
        rows.append((f'{row["count"]} times', f'{what}: {took}'))
    if len(about['collectives']) > LISTED:
        rest = about['collectives'][LISTED:]
        took = 1e3 * sum(row['seconds'] for row in rest)
        rows.append((f'{sum(row["count"] for row in rest)} times', f'smaller collectives: {took:.3g} ms'))
    rows += [
        (f'{count} times', f'kernel {name}, counted at its own claim')
        for name, count in about['uncounted'].items()
    ]
    return rows
