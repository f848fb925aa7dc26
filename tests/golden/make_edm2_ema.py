"""Writes edm2_ema.npz: exponents, decays and reconstruction coefficients of the authors' EDM2 code.

Needs torch and a checkout of NVlabs/edm2. From the repository's root:
JAXGEN_EDM2=... python tests/golden/make_edm2_ema.py
"""

import os
import pathlib
import sys

import numpy as np


def main() -> None:
    sys.path.insert(0, os.environ['JAXGEN_EDM2'])
    from training import phema

    widths, times = np.array([0.01, 0.05, 0.1, 0.2, 0.28]), np.array([1, 2, 10, 1000])
    stored = np.repeat([100, 250, 400, 1000], 2)
    stored_widths, wanted = np.array([0.05, 0.1] * 4), np.array([0.03, 0.05, 0.08, 0.15])
    arrays = {
        'widths': widths,
        'times': times,
        'exponents': phema.std_to_exp(widths),
        'decays': np.array([[phema.power_function_beta(width, t, 1) for t in times] for width in widths]),
        'stored_times': stored,
        'stored_widths': stored_widths,
        'wanted': wanted,
        'at': 1000,
        'coefficients': phema.solve_posthoc_coefficients(stored, stored_widths, 1000, wanted),
    }
    np.savez_compressed(pathlib.Path(__file__).with_name('edm2_ema.npz'), **arrays)


if __name__ == '__main__':
    main()
