"""Writes var.npz: the authors' VAR on seeded weights: logits, small gradients, and what it generates.

Needs torch and a checkout of FoundationVision/VAR. From the repository's root:
JAXGEN_VAR=... PYTHONPATH=.:tests python tests/golden/make_var.py
"""

import os
import pathlib

import numpy as np
from golden import make_vqgan, var_cases

from jaxgen.models import var
from jaxgen.weights import var as names
from jaxgen.weights.names import to_published


def generations(root: str) -> dict[str, np.ndarray]:
    """What the authors' network generates greedily, and what it paints into the codes of a picture."""
    tokenizer, network = make_vqgan.tokenizer(make_vqgan.TINY), var.build(**var_cases.TINY)
    weights = to_published(names.authors(False), var_cases.parameters(network))
    model = var_cases.authors(root, var_cases.TINY, weights, make_vqgan.published(tokenizer))
    params = {'tokenizer': make_vqgan.parameters(tokenizer)}
    known = tokenizer.quantize(params, var_cases.picture(tokenizer))
    runs = {'free': var_cases.generated(model), 'painted': var_cases.generated(model, known)}
    return {f'{run}/{name}': array for run, results in runs.items() for name, array in results.items()}


def main() -> None:
    stored = {}
    for case, settings in var_cases.CASES.items():
        network = var.build(**settings)
        weights = to_published(names.authors(network.shared), var_cases.parameters(network))
        results = var_cases.run_authors(
            var_cases.authors(os.environ['JAXGEN_VAR'], settings, weights), settings
        )
        small = {
            name: a
            for name, a in results.items()
            if a.size <= var_cases.LARGEST or name in ('logits', 'by_x')
        }
        stored |= {f'{case}/{name}': a for name, a in small.items()}
    stored |= generations(os.environ['JAXGEN_VAR'])
    np.savez_compressed(pathlib.Path(__file__).with_name('var.npz'), **stored)


if __name__ == '__main__':
    main()
