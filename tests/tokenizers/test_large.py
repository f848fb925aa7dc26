"""Large images at Stable Diffusion's widths: memory of whole processes, and the same numbers as diffusers."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from golden.seeded import relative_error

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def decoded(tmp_path):
    def decode(who, decoding, side):
        """Pixels, and the seconds and the peak memory that they took."""
        environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
        environment['PYTHONPATH'] = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
        file = tmp_path / f'{who}_{decoding}.npy'
        command = [sys.executable, ROOT / 'tests/tokenizers/large.py', who, decoding, str(side), file]
        run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        print(who, decoding, side, run.stdout)
        return np.load(file), json.loads(run.stdout.splitlines()[-1])['peak']

    return decode


@pytest.mark.slow
@pytest.mark.parity
def test_tiles_of_2048_fit_in_3_gigabytes_and_equal_diffusers(decoded):
    pytest.importorskip('diffusers')
    ours, peak = decoded('ours', 'tiled', 2048)
    theirs, _ = decoded('diffusers', 'tiled', 2048)
    assert peak <= 3e9
    assert relative_error(ours, theirs) <= 1e-4


@pytest.mark.slow
def test_exact_1024_equals_whole(decoded):
    exact, _ = decoded('ours', 'exact', 1024)
    whole, _ = decoded('ours', 'whole', 1024)
    assert relative_error(exact, whole) <= 1e-4
