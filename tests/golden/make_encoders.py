"""Writes clip.npz and dinov2.npz: what transformers' models do with seeded weights, and small gradients.

Needs torch and transformers. From the repository's root:
PYTHONPATH=.:tests python tests/golden/make_encoders.py
"""

import pathlib

import numpy as np
from golden import encoder_networks as encoders

LARGEST = 100  # elements of a gradient worth storing


def small(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is worth storing of a run."""
    return {name: a for name, a in results.items() if not name.startswith('by/') or a.size <= LARGEST}


def main() -> None:
    folder = pathlib.Path(__file__).parent
    stored = {}
    for case, settings in encoders.CLIP_CASES.items():
        model = encoders.transformers_model('clip', *encoders.build('clip', settings))
        found = encoders.run_transformers_clip(model, encoders.CLIP_PICTURES[case], encoders.ids())
        stored |= {f'{case}/{name}': a for name, a in small(found).items()}
    np.savez_compressed(folder / 'clip.npz', **stored)

    stored = {}
    for case, settings in encoders.DINOV2_CASES.items():
        model = encoders.transformers_model('dinov2', *encoders.build('dinov2', settings))
        found = encoders.run_transformers_dinov2(model, encoders.DINOV2_PICTURES[case])
        stored |= {f'{case}/{name}': a for name, a in small(found).items()}
    np.savez_compressed(folder / 'dinov2.npz', **stored)


if __name__ == '__main__':
    main()
