"""A trained tiny flow, reflowed through the jobs, draws better pictures in one and two steps."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_reflow_raises_alignment_at_few_steps(tmp_path):
    # A process of its own: the flags that make tests compile fast make programs slow.
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    environment['PYTHONPATH'] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    command = [sys.executable, '-m', 'search.straighten', str(tmp_path)]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    figures = json.loads(printed.splitlines()[-1])
    print(figures)
    before, after = figures['before'], figures['after']
    assert figures['steps'][:2] == [1, 2]
    assert after[0] > before[0] + 0.3 and after[1] > before[1] + 0.2
