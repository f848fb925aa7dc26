"""Weight files with some bytes changed: read, or refused with one error, and nothing else ever."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import jaxgen


def fuzz(count, seed):
    """The outcomes of mutated files, read by a process of their own."""
    folder = pathlib.Path(__file__).parent
    environment = {**os.environ, 'PYTHONPATH': str(pathlib.Path(jaxgen.__file__).parents[1])}
    command = [sys.executable, str(folder / 'mutate.py'), str(count), str(seed)]
    limit = 120 + count / 20  # seconds
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout)
    assert outcomes['read'] + outcomes['refused'] == 2 * count and min(outcomes.values()) > count // 50
    return outcomes


def test_mutated_files_are_read_or_refused():
    fuzz(1000, 0)


@pytest.mark.slow
def test_many_mutated_files_are_read_or_refused():
    print(fuzz(50_000, 1))
