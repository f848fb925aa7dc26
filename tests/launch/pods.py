"""Local pods of whole processes for the tests, on a copy of the code that nobody changes meanwhile."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import runs

ROOT = Path(__file__).parents[2]
LIMIT, STEPS = 600.0, 60
COMMAND = (
    '--nocompilation_cache',  # the cache of the tests is in the environment
    '--mode=train',
    f'--config.train.steps={STEPS}',
    '--config.train.save_every=15',
    '--config.train.log_every=2',
    '--config.train.sample_every=30',
    '--config.train.held_out_every=30',
    '--config.train.flip=True',
)


def copied(folder: Path) -> Path:
    """A folder with the code as it is now."""
    for name in ('jaxgen', 'configs', 'launch'):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
    # tensorboardX imports torch where there is one, which takes longer than all of jaxgen.
    (folder / 'torch.py').write_text("raise ImportError('left out')\n")
    return folder


class Run:
    """Pods of one command in one workdir, one after the other."""

    def __init__(self, code: Path, workdir: Path, *more: str):
        self.code, self.workdir = code, workdir
        self.command = [
            *COMMAND,
            f'--config={code}/configs/sit_folder.py:tiny',
            f'--workdir={workdir}',
            *more,
        ]
        self.output = workdir.with_suffix('.log')
        self.launcher: subprocess.Popen | None = None

    def start(self, processes: int, *more: str) -> None:
        """Start a pod, or with none of `processes` one process without any pod."""
        launch = [f'{self.code}/launch/local_pod.py', f'--processes={processes}', '--']
        command = [sys.executable, *(launch if processes else ['-m', 'jaxgen.main']), *self.command, *more]
        self.output.write_text('')
        with open(self.output, 'a') as output:
            self.launcher = subprocess.Popen(
                command, cwd=self.code, env=environment(self.code), stdout=output, stderr=output
            )

    def end(self) -> int:
        """Wait for the end; the exit code."""
        return self.launcher.wait(LIMIT)

    def go(self, processes: int, *more: str) -> int:
        """From start to end."""
        self.start(processes, *more)
        return self.end()

    def reach(self, step: int) -> None:
        """Wait until the run has logged a step."""
        self._until(lambda: any(line['step'] >= step for line in self.lines()))

    def pid(self, number: int) -> int:
        """Of a process of the pod, by what it was given."""
        for path in Path('/proc').glob('[0-9]*'):
            with contextlib.suppress(OSError):
                if f'{self.launcher.pid}' != re.search(r'PPid:\s+(\d+)', (path / 'status').read_text())[1]:
                    continue
                if f'JAXGEN_PROCESS={number}'.encode() in (path / 'environ').read_bytes().split(b'\0'):
                    return int(path.name)
        raise AssertionError(f'process {number} does not run: {self.said()}')

    def kill(self, number: int, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one process of the pod."""
        os.kill(self.pid(number), how)

    def said(self) -> str:
        """Everything that the last pod printed."""
        return self.output.read_text()

    def lines(self) -> list[dict]:
        """The metrics that are written, without what a clock says."""
        return runs.metrics(self.workdir)

    def checkpoints(self) -> list[int]:
        """The whole ones' steps."""
        return runs.checkpoints(self.workdir)

    def fingerprints(self) -> dict[str, str]:
        """Of the finished run's state."""
        return json.loads((self.workdir / 'train.json').read_text())['fingerprints']

    def result(self) -> dict:
        """All that a finished run leaves and that must not depend on how it was interrupted."""
        pictures = {path.name: path.read_bytes() for path in self.workdir.glob('pictures/*.png')}
        return {'fingerprints': self.fingerprints(), 'lines': self.lines(), 'pictures': pictures}

    def _until(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT
        while not happened():
            assert self.launcher.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.01)


def environment(code: Path) -> dict[str, str]:
    """For processes that import the copied code, each with one device."""
    flags = [flag for flag in os.environ.get('XLA_FLAGS', '').split() if 'device_count' not in flag]
    return os.environ | {'PYTHONPATH': str(code), 'XLA_FLAGS': ' '.join(flags), 'JAX_PLATFORMS': 'cpu'}


class Meeting:
    """Single processes that are to meet, each started by itself; what each says, and its exit code."""

    def __init__(self, port: int, processes: int):
        self.port, self.processes = port, processes
        self._running: dict[int, subprocess.Popen] = {}

    def come(self, number: int, code: Path, *command: str) -> None:
        """Start one process."""
        named = {
            'JAXGEN_COORDINATOR': f'127.0.0.1:{self.port}',
            'JAXGEN_PROCESSES': f'{self.processes}',
            'JAXGEN_PROCESS': f'{number}',
        }
        self._running[number] = subprocess.Popen(
            [sys.executable, '-m', 'jaxgen.main', *command],
            cwd=code,
            env=environment(code) | named,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> dict[int, tuple[int, str]]:
        """Wait for all."""
        said = {number: process.communicate(timeout=LIMIT)[0] for number, process in self._running.items()}
        return {number: (process.returncode, said[number]) for number, process in self._running.items()}
