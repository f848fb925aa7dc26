"""Writes llamagen.npz: the authors' LlamaGen on seeded weights: logits, small gradients, what it generates.

Needs torch and a checkout of FoundationVision/LlamaGen. From the repository's root:
JAXGEN_LLAMAGEN=... PYTHONPATH=.:tests python tests/golden/make_llamagen.py
"""

import os
import pathlib

import numpy as np
from golden import llamagen_cases as cases

from jaxgen.models import llamagen
from jaxgen.weights import llamagen as names
from jaxgen.weights.names import to_published


def main() -> None:
    stored = {}
    for case, settings in cases.CASES.items():
        network = llamagen.build(**settings)
        weights = to_published(names.layouts(network)['authors'], cases.parameters(network))
        model = cases.authors(os.environ['JAXGEN_LLAMAGEN'], settings, weights)
        results = cases.run_authors(model, settings)
        kept = {name: a for name, a in results.items() if a.size <= cases.LARGEST or name == 'logits'}
        kept |= cases.generated(model, settings)
        ended = cases.generated(model, settings, cases.GUIDED - 2)
        kept |= {f'ended/{name}': array for name, array in ended.items()}
        kept['turns'] = model.freqs_cis.numpy()
        stored |= {f'{case}/{name}': array for name, array in kept.items()}
    np.savez_compressed(pathlib.Path(__file__).with_name('llamagen.npz'), **stored)


if __name__ == '__main__':
    main()
