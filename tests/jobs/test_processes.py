"""Two processes convert and draw as one does, whatever each of them finds on its own disk."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import published
import pytest
from PIL import Image

from jaxgen.weights import safetensors

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_convert_and_draw(tmp_path):
    weights = tmp_path / 'weights'
    published.publish(weights)
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    command = [sys.executable, 'tests/jobs/processes.py']
    running = [
        subprocess.Popen([*command, str(number), str(port), weights, tmp_path], cwd=ROOT, env=environment)
        for number in range(2)
    ]
    try:
        assert [process.wait(900) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    for file in weights.rglob('*.safetensors'):
        before = safetensors.read(file)
        after = safetensors.read(tmp_path / 'back' / file.relative_to(weights))
        assert before.keys() == after.keys()
        assert all(np.array_equal(array, after[name]) for name, array in before.items())
    assert (tmp_path / 'run' / 'convert.json').exists()
    first, again, other = (
        np.asarray(Image.open(tmp_path / f'drawn/samples/{i:05d}.png')).astype(int) for i in range(3)
    )
    assert np.abs(first - again).max() <= 1 < np.abs(first - other).max()
    kept = [len(list((tmp_path / f'home{i}').rglob('*.safetensors'))) for i in range(2)]
    assert kept[0] == kept[1] == len({'a cat', 'a dog', ''})
