"""A TensorBoard file, written by the caller: the library's own thread blocks the run on a full disk."""

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

log = logging.getLogger('jaxgen')
SECONDS_BETWEEN_FLUSHES = 60.0


class Board:
    """The events of a run from a step on; those of an earlier run after it are hidden."""

    def __init__(self, directory: epath.Path, resume_step: int):
        self._directory, self._writer, self._given_up = directory, None, False
        self._flushed = time.monotonic()
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write([event_pb2.Event(step=resume_step + 1, session_log=start)])  # hides what was after it

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Named numbers of a step."""
        self._add(step, [summary.scalar(name, number) for name, number in numbers.items()])

    def image(self, step: int, name: str, grid: np.ndarray) -> None:
        """One picture: uint8 [H, W, 3]."""
        self._add(step, [summary.image(name, grid, dataformats='HWC')])

    def close(self) -> None:
        """Writes out what is still held."""
        self._write([], flush=True)
        with contextlib.suppress(OSError):  # told by now
            if self._writer is not None:
                self._writer.close()

    def _add(self, step: int, summaries: Sequence[Any]) -> None:
        self._write([event_pb2.Event(step=step, summary=one) for one in summaries])

    def _write(self, events: Sequence[Any], flush: bool = False) -> None:
        if self._given_up:
            return
        now = time.monotonic()
        try:
            if self._writer is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._writer = EventsWriter(os.fspath(self._directory / 'events'))
            for event in events:
                event.wall_time = time.time()
                self._writer.write_event(event)
            if flush or now - self._flushed > SECONDS_BETWEEN_FLUSHES:
                self._writer.flush()
                self._flushed = now
        except OSError as error:
            log.warning('TensorBoard could not be written (%s); the run goes on without it.', error)
            self._given_up = True  # half an event would hide all after it
