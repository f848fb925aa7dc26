"""Devices of a TPU slice that is not there, for compiling ahead of time.

The compiler is in libtpu, which runs on any Linux machine; jax asks it for a description of the slice, and
the backend in use stays what it is.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import itertools
import math
import os
import re
from typing import Any

from jax.experimental import topologies

from jaxgen.estimate.chips import KINDS, chip

INSTALL = 'pip install "jax[tpu]" (or libtpu alone, which compiles on any Linux machine)'
# Chips along an axis that slices of each generation come in.
SLICES = {
    'v4': ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8'),
    'v5e': ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
    'v5p': ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8'),
    'v6e': ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
}


def version() -> str | None:
    """The libtpu at hand, or None."""
    if importlib.util.find_spec('libtpu') is None:
        return None
    for name in ('libtpu', 'libtpu-nightly'):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return 'of unknown version'


@dataclasses.dataclass(frozen=True)
class Absent:
    """What stands for a chip where there is no compiler for it: a place for shardings, nothing more."""

    id: int
    coords: tuple[int, ...]
    slice_index: int
    device_kind: str
    platform: str = 'tpu'
    process_index: int = 0
    core_on_chip: int = 0


def parts(name: str) -> tuple[int, str, tuple[int, ...]]:
    """A name such as '2*v5e:4x8' as (slices, slice, chips along its axes)."""
    found = re.fullmatch(r'(?:(\d+)\*)?(.*)', name)
    slices, single = int(found.group(1) or 1), found.group(2)
    generation, colon, shape = single.partition(':')
    if not colon:
        raise ValueError(f"'{name}' names no slice; write for example 'v5e:2x4', or '2*v5e:4x8' for two.")
    chip(generation)
    if not re.fullmatch(r'\d+(x\d+){1,2}', shape) or not slices:
        raise ValueError(f"'{name}' names no slice; {_near(generation, shape)}.")
    return slices, single, tuple(map(int, shape.split('x')))


def devices(name: str, absent: bool = False) -> list[Any]:
    """The devices of a slice such as 'v5e:4x8'; '2*v5e:4x8' are those of two, joined by a network.

    `absent` ones can be compiled for by nobody, and need no libtpu.
    """
    slices, single, shape = parts(name)
    generation = single.partition(':')[0]
    if absent:
        places = list(itertools.product(*map(range, shape[::-1])))
        kind = next(kind for kind, known in KINDS.items() if known == generation)
        return [
            Absent(number * len(places) + i, (*place[::-1], 0)[:3], number, kind)
            for number in range(slices)
            for i, place in enumerate(places)
        ]
    if version() is None:
        raise ModuleNotFoundError(f'compiling for {name} needs libtpu: {INSTALL}.')
    # It would look for a TPU's metadata server, and lock out other processes.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    # Without these it says at length that this machine is no TPU.
    quiet = {'TPU_ACCELERATOR_TYPE': 'v5litepod-8', 'TPU_WORKER_HOSTNAMES': 'localhost'}
    lacking = {name: value for name, value in quiet.items() if name not in os.environ}
    os.environ.update(lacking)
    options: dict[str, Any] = {'num_slices': slices} if slices > 1 else {}
    if generation == 'v4':
        options['chip_config_name'] = 'megacore'  # as jobs on v4 run: both cores of a chip are one device
    try:
        described = topologies.get_topology_desc(platform='tpu', topology_name=single, **options)
    except Exception as error:
        said = str(error).splitlines()[0]
        near = _near(generation, single.partition(':')[2])
        raise ValueError(f'libtpu {version()} knows no slice {name} ({said}); {near}.') from error
    finally:
        for variable in lacking:
            del os.environ[variable]
    return list(described.devices)


def _chips(shape: str) -> int:
    return math.prod(map(int, re.findall(r'\d+', shape.partition(':')[2] or shape)))


def _near(generation: str, shape: str) -> str:
    known = [f'{generation}:{each}' for each in SLICES[generation]]
    nearest = min(known, key=lambda each: abs(math.log(_chips(each) / max(1, _chips(shape)))))
    return f"the nearest is '{nearest}', of {', '.join(known)}"
