"""Writes the networks' golden files: outputs and small gradients of the authors' code on seeded weights.

Needs torch and checkouts of the authors' repositories; see golden/authors.py. From the repository's root,
with JAXGEN_DIT, JAXGEN_SIT, JAXGEN_PIXART_SIGMA and JAXGEN_LIGHTNINGDIT set:
PYTHONPATH=.:tests python tests/golden/make_networks.py
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
    folder, condition = pathlib.Path(__file__).parent, cases.dit_condition()
    x = cases.image(cases.DIT_GRID)
    for name, settings in {'dit': cases.DIT, 'sit': cases.DIT | cases.SIT}.items():
        weights = published_weights('dit', settings, x, condition)
        results = authors.run_labels(authors.dit_model(weights, settings), x, settings)
        np.savez_compressed(folder / f'{name}.npz', **small(results))

    stored, x = {}, cases.image(cases.LIGHTNING_DIT_GRID, cases.LIGHTNING_DIT['channels'])
    for case, settings in cases.LIGHTNING_DIT_CASES.items():
        weights = published_weights('lightning_dit', settings, x, condition)
        results = authors.run_labels(authors.lightning_dit_model(weights, settings), x, settings)
        stored |= {f'{case}/{name}': a for name, a in small(results).items()}
    np.savez_compressed(folder / 'lightning_dit.npz', **stored)

    stored, x = {}, cases.image(cases.PIXART_GRID)
    for case, settings in cases.PIXART_CASES.items():
        weights = published_weights('pixart', settings, x, cases.pixart_condition())
        results = authors.run_pixart(authors.pixart_model(weights, settings), settings, DROP)
        stored |= {f'{case}/{name}': a for name, a in small(results).items()}
    np.savez_compressed(folder / 'pixart.npz', **stored)


if __name__ == '__main__':
    main()
