"""Writes dit.npz and pixart.npz: outputs and small gradients of the authors' code on seeded weights.

Needs torch and checkouts of the authors' repositories; see golden/authors.py. From the repository's root:
JAXGEN_DIT=... JAXGEN_PIXART_SIGMA=... PYTHONPATH=.:tests python tests/golden/make_networks.py
"""

import pathlib

import numpy as np
from golden import authors, cases

from jaxgen.weights.names import to_published

LARGEST = 600  # elements of a gradient worth storing
DROP = (False, False, True)


def published_weights(family: str, settings: dict, x: np.ndarray, condition: dict) -> dict[str, np.ndarray]:
    """The shared case's seeded weights under the authors' names."""
    network, table = cases.build(family, settings)
    return to_published(table, cases.parameters(network, table, x, condition))


def small(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is worth storing of a run."""
    return {name: a for name, a in results.items() if a.size <= LARGEST or name in ('out', 'by_x')}


def main() -> None:
    folder = pathlib.Path(__file__).parent
    weights = published_weights('dit', cases.DIT, cases.image(cases.DIT_GRID), cases.dit_condition())
    np.savez_compressed(folder / 'dit.npz', **small(authors.run_dit(authors.dit_model(weights, cases.DIT))))

    stored = {}
    for case, settings in cases.PIXART_CASES.items():
        weights = published_weights(
            'pixart', settings, cases.image(cases.PIXART_GRID), cases.pixart_condition()
        )
        results = authors.run_pixart(authors.pixart_model(weights, settings), DROP)
        stored |= {f'{case}/{name}': a for name, a in small(results).items()}
    np.savez_compressed(folder / 'pixart.npz', **stored)


if __name__ == '__main__':
    main()
