"""What a run tells while it runs: a progress bar, TensorBoard, and one JSON line a logged step.

The JSON lines are the record that other programs read; a resumed run cuts them back to the step it restored,
so that the file reads as if the run had never stopped. A full disk ends no run: the lines wait for room.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

log = logging.getLogger('jaxgen')
METRICS = 'metrics.jsonl'
SHOWN = ('loss', 'images_per_second')  # the last parts of the names that the console shows
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_UPLOADS = 60.0


class Telemetry:
    """The outputs of a run in `workdir`; on processes other than the first it does nothing.

    A context manager. Values may be device arrays of one element. Where the console is no terminal it prints
    plain lines, at most one in `SECONDS_BETWEEN_LINES` and one at the end. `watch(step, picture)` is shown
    every picture; a notebook that watches has the bar too.
    """

    def __init__(
        self,
        workdir: str | epath.PathLike,
        total_steps: int,
        resume_step: int = 0,
        enabled: bool | None = None,
        console: TextIO | None = None,
        watch: Callable[[int, np.ndarray], None] | None = None,
    ):
        self.enabled = jax.process_index() == 0 if enabled is None else enabled
        if not self.enabled:
            return
        self._total, self._first, self._watch = total_steps, resume_step, watch
        self._console = sys.stderr if console is None else console
        directory = epath.Path(workdir)
        directory.mkdir(parents=True, exist_ok=True)
        from jaxgen.training.board import Board  # seconds where torch is installed, which it then loads

        self._lines = _Lines(directory / METRICS, resume_step)
        self._board = Board(directory / 'tensorboard', resume_step)
        self._bar = None
        if self._console.isatty() or watch is not None:
            self._bar = tqdm(total=total_steps, initial=resume_step, file=self._console, unit='step')
        self._begun = time.monotonic()
        self._printed = -math.inf

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Records named numbers of a step and moves the bar there."""
        if not self.enabled:
            return
        numbers = {name: float(np.asarray(value)) for name, value in values.items()}
        self._lines.append({'step': step, 'time': time.time(), **numbers})
        self._board.scalars(step, numbers)
        self._show(step, numbers)

    def images(self, step: int, name: str, grid: np.ndarray) -> None:
        """Records one picture: uint8 [H, W, 3]."""
        if not self.enabled:
            return
        grid = np.asarray(grid)
        if grid.dtype != np.uint8 or grid.ndim != 3 or grid.shape[-1] != 3:
            raise ValueError(
                f'image {name!r} is {grid.dtype}{list(grid.shape)}; give one uint8 [H, W, 3] grid'
            )
        self._board.image(step, name, grid)
        if self._watch is not None:
            self._watch(step, grid)

    def close(self) -> None:
        """Writes out what is still held and ends the bar."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.close()
        self._lines.close()
        self._board.close()

    def __enter__(self) -> 'Telemetry':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _show(self, step: int, numbers: Mapping[str, float]) -> None:
        shown = {
            name.replace('_per_', '/'): f'{number:.4g}'
            for name, number in numbers.items()
            if name.rsplit('/', 1)[-1] in SHOWN
        }
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._printed < SECONDS_BETWEEN_LINES and step < self._total:
            return
        self._printed = now
        values = ''.join(f', {name} {value}' for name, value in shown.items())
        if step > self._first + 1:  # the first step compiles, and says nothing of the rest
            rate = (now - self._begun) / (step - self._first)
            values += f', {tqdm.format_interval(rate * max(0, self._total - step))} left'
        print(f'step {step}/{self._total}{values}', file=self._console, flush=True)


def read_lines(workdir: str | epath.PathLike, last_step: int) -> list[dict[str, Any]]:
    """What a run said up to a step, line by line."""
    return [json.loads(line) for line in _kept(epath.Path(workdir) / METRICS, last_step)]


def write_json(path: str | epath.PathLike, values: Mapping[str, Any]) -> None:
    """Writes a JSON file that is at every moment the old one or the new one, whole."""
    _write_whole(epath.Path(path), json.dumps(values, indent=2) + '\n')


class _Lines:
    """An append-only JSON lines file. An object store cannot append, so there the whole goes up at times."""

    def __init__(self, path: epath.Path, resume_step: int):
        self._path, self._local = path, not _is_remote(path)
        kept = ''.join(_kept(path, resume_step))
        if path.exists() and kept != path.read_text():
            _write_whole(path, kept)
        self._file = open(path, 'ab', buffering=0) if self._local else None
        self._waiting = b'' if self._local else kept.encode()
        self._failed = False
        self._uploaded = time.monotonic()

    def append(self, values: Mapping[str, Any]) -> None:
        # JSON knows neither infinity nor nan.
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        self._waiting += (json.dumps(finite) + '\n').encode()
        if self._local or time.monotonic() - self._uploaded > SECONDS_BETWEEN_UPLOADS:
            self._write()

    def close(self) -> None:
        self._write()
        if self._file is not None:
            self._file.close()

    def _write(self) -> None:
        """Write what waits; what a full disk does not take goes on waiting, to the byte."""
        try:
            if self._file is None:
                self._path.write_bytes(self._waiting)
                self._uploaded = time.monotonic()
            while self._file is not None and self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if not self._failed:
                log.warning('%s could not be written (%s); its lines wait for room.', self._path, error)
            self._failed = True


def _kept(path: epath.Path, resume_step: int) -> list[str]:
    """The whole lines of a file up to a step."""
    old = path.read_text() if path.exists() else ''
    return [line for line in old.splitlines(keepends=True) if _reaches(line, resume_step)]


def _reaches(line: str, resume_step: int) -> bool:
    """Whether a line is whole and of a step up to the resumed one."""
    try:
        return line.endswith('\n') and json.loads(line)['step'] <= resume_step
    except (ValueError, KeyError, TypeError):
        return False


def _is_remote(path: epath.Path) -> bool:
    return '://' in os.fspath(path)


def _write_whole(path: epath.Path, text: str) -> None:
    if _is_remote(path):
        path.write_text(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = f'{os.fspath(path)}.{os.getpid()}.tmp'
    with open(temporary, 'w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
