"""The classifier of shapes that ships is replaced by that of a run of configs/classifier_shapes.py.

`python tests/encoders/keep_classifier.py RUN`
"""

import sys

import numpy as np

from jaxgen import recipe
from jaxgen.encoders.shapes_classifier import KEPT
from jaxgen.generate import config_of
from jaxgen.program import assemble, load_params


def keep(run, path=KEPT):
    """Write a run's parameters as they ship, in half precision."""
    params = load_params(assemble(recipe.build(config_of(run))), run)[1]['model']
    np.savez_compressed(path, **{name: np.asarray(leaf, np.float16) for name, leaf in params.items()})


if __name__ == '__main__':
    keep(sys.argv[1])
