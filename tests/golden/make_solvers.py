"""Writes solvers.npz: walks of diffusers' schedulers and of DiT's authors' sampler with a fixed network.

Needs diffusers, torch and a checkout of facebookresearch/DiT. From the repository's root:
JAXGEN_DIT=... PYTHONPATH=tests python tests/golden/make_solvers.py
"""

import pathlib

import numpy as np
from golden import schedulers


def main() -> None:
    arrays = {name: schedulers.packed(*schedulers.run(one)) for name, one in schedulers.cases().items()}
    arrays |= {f'dit/{steps}': schedulers.packed(*schedulers.run_dit(steps)) for steps in (5, 20)}
    for name, array in arrays.items():
        assert np.isfinite(array).all(), name
    np.savez_compressed(pathlib.Path(__file__).with_name('solvers.npz'), **arrays)


if __name__ == '__main__':
    main()
