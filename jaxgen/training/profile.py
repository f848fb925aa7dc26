"""A profiler's trace of some steps, on request; `tensorboard --logdir` and Perfetto show it."""

from collections.abc import Iterator
from typing import Any

import jax
from etils import epath


def traced(
    steps: Iterator[tuple[int, Any]], first: int, window: tuple[int, ...], folder: epath.Path
) -> Iterator[tuple[int, Any]]:
    """Passes on (number, state) of steps counted after `first`, tracing those from window[0] to window[1]."""
    begin, end = window or (0, 0)
    running, done = False, first
    try:
        while True:
            if begin <= done + 1 <= end and not running:
                jax.profiler.start_trace(str(folder))
                running = True
            if (item := next(steps, None)) is None:
                return
            done = item[0]
            if running and done >= end:
                jax.block_until_ready(item[1])
                jax.profiler.stop_trace()
                running = False
            yield item
    finally:
        if running:
            jax.profiler.stop_trace()
