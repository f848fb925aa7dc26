"""Writes scheduler_configs.npz: where diffusers' schedulers lead with a fixed network.

Needs diffusers and torch. From the repository's root:
PYTHONPATH=.:tests python tests/golden/make_scheduler_configs.py
"""

import pathlib

import numpy as np
from golden import scheduler_configs as published


def main() -> None:
    ends = {
        f'{case}/{steps}': published.run(class_name, config, steps, *published.noises(steps))
        for case, (class_name, config) in published.CASES.items()
        for steps in published.STEPS
    }
    for name, end in ends.items():
        assert np.isfinite(end).all(), name
    np.savez_compressed(pathlib.Path(__file__).with_name('scheduler_configs.npz'), **ends)


if __name__ == '__main__':
    main()
