"""Weights and inputs that a seed determines for ever, so that golden files need not store them.

NumPy's RandomState is frozen by its authors; every tensor has its own stream, named by a checksum.
"""

import pathlib
import zlib

import numpy as np


def normal(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Standard normal float32 that depends on the name, the shape and the seed alone."""
    state = np.random.RandomState([seed, zlib.crc32(name.encode())])
    return state.standard_normal(shape).astype(np.float32)


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Published-name weights, none of them zero, at scales that keep activations near one."""

    def scale(name: str, shape: tuple[int, ...]) -> float:
        matrix = name.endswith('weight') and len(shape) > 1 and 'table' not in name
        return 1.0 / np.sqrt(np.prod(shape[1:])) if matrix else 0.3

    def offset(name: str, shape: tuple[int, ...]) -> float:
        return 1.0 if name.endswith('weight') and len(shape) == 1 else 0.0

    return {
        name: scale(name, shape) * normal(name, shape, seed) + np.float32(offset(name, shape))
        for name, shape in shapes.items()
    }


def stored(name: str) -> np.lib.npyio.NpzFile:
    """The golden arrays of tests/golden/<name>.npz."""
    return np.load(pathlib.Path(__file__).with_name(f'{name}.npz'))


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max |ours - theirs| / max |theirs|."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def disagreements(
    ours: dict[str, np.ndarray], reference: dict[str, np.ndarray], tolerance: float
) -> dict[str, float]:
    """The tensors of a reference with a relative error above tolerance.

    Gradients that are zero but for rounding (a key's bias moves all scores of a query alike) have no relative
    error; ours only have to be as small.
    """
    rounding = 1e-6 * max(np.abs(theirs).max() for theirs in reference.values())
    errors = {}
    for name, theirs in reference.items():
        if np.abs(theirs).max() > rounding:
            error = relative_error(ours[name], theirs)
        else:
            error = 0.0 if np.abs(ours[name]).max() <= rounding else np.inf
        if not error <= tolerance:
            errors[name] = error
    return errors
