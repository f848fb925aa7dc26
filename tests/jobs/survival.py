"""Whole training processes to be killed, and what they leave, for the tests of survival."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from configurations import FOLDER

import runs

STEPS, EVERY, LIMIT = 48, 3, 600.0
SAMPLE = ('--mode=train,sample', '--count=2', '--prompt=1')
COMMAND = (
    '--nocompilation_cache',  # the cache of the tests is in the environment
    f'--config={FOLDER / "sit_folder.py"}:tiny',
    f'--config.train.steps={STEPS}',
    f'--config.train.save_every={EVERY}',
    '--config.train.log_every=2',
    '--config.train.sample_every=16',
    '--config.train.held_out_every=16',
    '--config.train.flip=True',
    '--config.data.examples=50',  # less than the run takes: it crosses epochs
)


class Run:
    """Processes of one command in one workdir, one after the other."""

    def __init__(self, folder: Path, workdir: str, *more: str):
        self.folder, self.workdir, self.more = folder, folder / workdir, more
        # tensorboardX imports torch where there is one, which takes longer than all of jaxgen.
        (folder / 'without').mkdir(exist_ok=True)
        (folder / 'without' / 'torch.py').write_text("raise ImportError('left out')\n")
        flags = [flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag]
        self.environment = os.environ | {
            'PYTHONPATH': os.pathsep.join([str(folder / 'without'), str(FOLDER.parent)]),
            'XLA_FLAGS': ' '.join(flags),
        }
        self.process: subprocess.Popen | None = None
        self.log = folder / f'{workdir}.log'

    def start(self, *more: str, mode: tuple[str, ...] = SAMPLE) -> None:
        command = [sys.executable, '-m', 'jaxgen.main', f'--workdir={self.workdir}', *COMMAND, *mode]
        with open(self.log, 'a') as log:
            self.process = subprocess.Popen(
                [*command, *self.more, *more], cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )

    def end(self) -> int:
        """Wait for the end; the exit code."""
        return self.process.wait(LIMIT)

    def go(self, *more: str, mode: tuple[str, ...] = SAMPLE) -> int:
        """From start to end."""
        self.start(*more, mode=mode)
        return self.end()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal, to a process that may have ended already, and wait for its end."""
        self.process.send_signal(number)
        return self.end()

    def reach(self, step: int) -> None:
        """Wait until the run has logged a step, or ended."""
        self._until(lambda: any(line['step'] >= step for line in self.lines()))

    def hold(self, count: int) -> None:
        """Wait until the run has so many whole checkpoints, or ended."""
        self._until(lambda: len(self.checkpoints()) >= count)

    def save(self, after: int = 0) -> None:
        """Wait until the run is in the middle of a save that begins now, some saves from now, or ended."""
        for _ in range(after + 1):
            left = self._saves()  # also what an earlier process left
            self._until(lambda left=left: self._saves() - left)

    def _saves(self) -> set[tuple[str, int]]:
        with contextlib.suppress(FileNotFoundError):
            return {(path.name, path.stat().st_ino) for path in self.unfinished()}
        return set()

    def _until(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT
        while not happened() and self.process.poll() is None:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.001)

    def said(self) -> str:
        """Everything that the processes printed."""
        return self.log.read_text()

    def checkpoints(self) -> list[int]:
        """The whole ones' steps."""
        return runs.checkpoints(self.workdir)

    def unfinished(self) -> list[Path]:
        """What a save has not finished."""
        return list(self.workdir.glob('checkpoints/*orbax-checkpoint-tmp*'))

    def lines(self) -> list[dict]:
        """The metrics that are written, without what a clock says."""
        return runs.metrics(self.workdir)

    def result(self) -> dict:
        """All that a finished run leaves and that must not depend on how it was interrupted."""
        record = json.loads((self.workdir / 'train.json').read_text())
        pictures = sorted([*self.workdir.glob('pictures/*.png'), *self.workdir.glob('samples/*.png')])
        return {
            'fingerprints': record['fingerprints'],
            'metrics': record['metrics'],
            'lines': self.lines(),
            'pictures': {path.name: path.read_bytes() for path in pictures},
        }

    def largest_chunk(self, step: int) -> Path:
        """The file of a checkpoint that holds most of its arrays."""
        files = (self.workdir / 'checkpoints' / str(step) / 'state').rglob('*')
        return max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(run: Run) -> str:
    """Halve the newest checkpoint's largest file; what of it is to be said."""
    step = run.checkpoints()[-1]
    chunk = run.largest_chunk(step)
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    return f'checkpoints/{step} is damaged'


def delete_a_chunk(run: Run) -> str:
    """Delete the newest checkpoint's largest file."""
    step = run.checkpoints()[-1]
    run.largest_chunk(step).unlink()
    return f'checkpoints/{step} is damaged'


def kill_somewhere(run: Run, dice: random.Random) -> str:
    """Start the run and kill it: at some step, in the middle of a save, or while it sets up."""
    run.start(f'--config.train.threads={dice.randrange(3)}', mode=('--mode=train',))
    how = dice.choice(('step', 'step', 'save', 'save', 'time'))
    if how == 'step':
        run.reach(dice.randrange(run.checkpoints()[-1] if run.checkpoints() else 0, STEPS) + 1)
    elif how == 'save':
        run.save(after=dice.randrange(3))
    else:
        time.sleep(dice.uniform(0, 6))
    time.sleep(dice.uniform(0, 0.02))
    run.kill()
    return f'{how}: at {run.checkpoints()[-1:]}, {len(run.unfinished())} unfinished'
