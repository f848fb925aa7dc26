"""What one chip of each TPU generation can do.

Peaks, memory and bandwidths are those of Google's data sheets (cloud.google.com/tpu/docs/system-
architecture-tpu-vm); clocks are what makes the matrix units, counted in multiply-adds a cycle, meet the
peak; the bandwidth of one link in one direction is that of "How to Scale Your Model" (jax-
ml.github.io/scaling-book).
"""

import dataclasses
import difflib


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip: a core as the compiler sees it (v4 and v5p: both cores as one), its memory and its links.

    peak, peak_int8: operations a second in bfloat16 and int8. hbm: bytes that a program may have.
    bandwidth: bytes a second from HBM. link: bytes a second of one link to a neighbour, in one direction.
    wrap: an axis of the slice is closed to a ring where its chips are a multiple of this. dcn: bytes a
    second and chip between slices. matrix: the side of a matrix unit.

    The rest is calibrated against the final bundles of the compiler (tests/estimate/against_bundles.py):
    loops, the share of its own estimate that a loop without a matmul takes; alone and fused, the share of
    what it adds to a matmul's cycles on the matrix units where nothing is fused with it, and where
    something is; busy, what vector units take in such a fusion, over what fills their slots.
    """

    name: str
    clock: float
    peak: float
    peak_int8: float
    hbm: float
    bandwidth: float
    link: float
    wrap: int
    dcn: float
    matrix: int
    loops: float = 0.22
    alone: float = 0.1
    fused: float = 0.25
    busy: float = 1.6

    @property
    def operations(self) -> float:
        """Operations of the matrix units a cycle, bf16."""
        return self.peak / self.clock


GIB = 2**30
CHIPS = {
    'v4': Chip('v4', 1.05e9, 275e12, 275e12, 31.25 * GIB, 1228e9, 45e9, 4, 6.25e9, 128),
    'v5e': Chip('v5e', 1.50e9, 197e12, 394e12, 15.75 * GIB, 819e9, 45e9, 16, 3.125e9, 128),
    'v5p': Chip(
        'v5p', 1.75e9, 459e12, 918e12, 95.25 * GIB, 2765e9, 90e9, 4, 6.25e9, 128, fused=0.4, busy=1.2
    ),
    'v6e': Chip(
        'v6e', 1.75e9, 918e12, 1836e12, 31.25 * GIB, 1640e9, 90e9, 16, 6.25e9, 256, fused=0.7, busy=1.3
    ),
}
KINDS = {'TPU v4': 'v4', 'TPU v5 lite': 'v5e', 'TPU v5': 'v5p', 'TPU v6 lite': 'v6e'}


def chip(name: str) -> Chip:
    """The chip of a name such as 'v5e', of a slice such as 'v5e:4x8', or of jax's `device_kind`."""
    generation = KINDS.get(name, name.partition(':')[0])
    if generation not in CHIPS:
        nearest = difflib.get_close_matches(generation, CHIPS, 1, 0)[0]
        raise ValueError(
            f"no figures are known of a chip '{name}'; the nearest is '{nearest}', of {', '.join(CHIPS)}."
        )
    return CHIPS[generation]
