"""A pod on one machine: N processes of jaxgen, each with CPU devices of its own, as on N hosts.

    python launch/local_pod.py --processes=4 -- --config=configs/sit_folder.py:tiny --workdir=runs/pod

Each line that a process prints is shown behind its number, and kept in a file of its own, `logs/0.log` and so
on in the workdir. Ctrl-C and SIGTERM are passed on to all. The exit code is that of the process that failed
first; the others have a minute to end then.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from slices import fail, split

ROOT = Path(__file__).resolve().parents[1]
GRACE = 70.0  # seconds: the others notice by themselves within 60
FLAGS = (
    '--xla_force_host_platform_device_count={devices}',
    '--xla_cpu_collective_call_terminate_timeout_seconds=600',  # a machine with more processes than cores
)


def environment(number: int, processes: int, port: int, devices: int) -> dict[str, str]:
    """What makes a process the `number`-th of a pod, and gives it devices."""
    kept = [flag for flag in os.environ.get('XLA_FLAGS', '').split() if 'device_count' not in flag]
    return os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': ' '.join([*kept, *FLAGS]).format(devices=devices),
        'PYTHONPATH': os.pathsep.join(filter(None, [os.environ.get('PYTHONPATH', ''), str(ROOT)])),
        'PYTHONUNBUFFERED': '1',
        'JAXGEN_COORDINATOR': f'127.0.0.1:{port}',
        'JAXGEN_PROCESSES': str(processes),
        'JAXGEN_PROCESS': str(number),
    }


def free_port() -> int:
    """A port that is free, and the next one too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(('127.0.0.1', 0))
            port = first.getsockname()[1]
            try:
                second.bind(('127.0.0.1', port + 1))
            except (OSError, OverflowError):
                continue
            return port


class Process:
    """One process, and the thread that shows and keeps what it prints."""

    def __init__(self, number: int, command: list[str], variables: dict[str, str], log: Path):
        self.number, self.log = number, log
        # In a session of its own, so that a terminal's Ctrl-C reaches it once, from us.
        self.popen = subprocess.Popen(
            command,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._show)
        self._thread.start()

    def _show(self) -> None:
        with open(self.log, 'a') as kept:
            for line in self.popen.stdout:
                print(f'[{self.number}] {line}', end='', flush=True)
                kept.write(line)
                kept.flush()

    def signal(self, number: int) -> None:
        """Pass a signal on, if the process still runs."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)

    def end(self) -> None:
        """End it, whatever it does."""
        self.signal(signal.SIGKILL)
        self._thread.join()


def follow(processes: list[Process]) -> int:
    """Wait for all to end, or for `GRACE` seconds after the first failure, whose code is returned."""
    code, deadline = 0, float('inf')
    running = list(processes)
    while running and time.monotonic() < deadline:
        time.sleep(0.05)
        ended = [process for process in running if process.popen.poll() is not None]
        # Of those that ended since we last looked, one that was killed was the first.
        for process in sorted(ended, key=lambda process: process.popen.returncode):
            running.remove(process)
            number = process.popen.returncode
            if number and not code:
                code = 128 - number if number < 0 else number
                deadline = time.monotonic() + GRACE
    for process in running:
        print(f'launch: process {process.number} does not end by itself', file=sys.stderr)
    return code


def main() -> int:
    """Read the command line, run the pod."""
    ours, command = split(sys.argv[1:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--processes', type=int, default=4)
    parser.add_argument('--devices', type=int, default=1, help='CPU devices a process')
    parser.add_argument(
        '--logs', default='', help='the folder of the log files; default logs/ in the workdir'
    )
    options = parser.parse_args(ours)
    if not command:
        fail("give jaxgen's flags after --.")
    if min(options.processes, options.devices) < 1:
        fail('give at least one process, and one device each.')
    workdir = [flag.partition('=')[2] for flag in command if flag.startswith('--workdir=')]
    logs = Path(
        options.logs or (f'{workdir[-1]}/logs' if workdir else tempfile.mkdtemp(prefix='jaxgen_pod_'))
    )
    logs.mkdir(parents=True, exist_ok=True)
    port, processes = free_port(), []
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: [process.signal(number) for process in processes])
        for number in range(options.processes):
            variables = environment(number, options.processes, port, options.devices)
            job = [sys.executable, '-m', 'jaxgen.main', *command]
            processes.append(Process(number, job, variables, logs / f'{number}.log'))
        return follow(processes)
    finally:
        for process in processes:
            process.end()


if __name__ == '__main__':
    sys.exit(main())
