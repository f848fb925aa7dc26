"""The numbers of the training loop."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxgen.config import Count, Seed, Whole


@dataclasses.dataclass(frozen=True)
class Train:
    """The numbers of the training loop: counts are in steps, 0 (where it may be) is never.

    `compiler` are XLA's options for the step's program, beside those that jaxgen gives.
    """

    steps: Count
    batch: Count
    seed: Seed = 0
    accumulate: Count = 1
    threads: Whole = 2
    flip: bool = False
    log_every: Count = 50
    held_out_every: Whole = 0
    held_out_batches: Count = 8
    sample_every: Whole = 0
    sample_batch: Count = 64
    save_every: Count = 1000
    keep: Count = 3
    keep_period: Whole = 0
    profile: tuple[int, ...] = ()
    compiler: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = all(isinstance(step, int) for step in self.profile)
        if self.profile and not (
            counts and len(self.profile) == 2 and 1 <= self.profile[0] <= self.profile[1]
        ):
            raise ValueError(f'train.profile is {self.profile}; give the first and the last step to trace.')
