"""A published pipeline's folder of tiny networks with random weights, for tests; also as a script: FOLDER."""

import sys

import jax
import numpy as np

from jaxgen import config, recipe
from jaxgen.jobs import convert

CONFIG = 'configs/pixart_alpha.py:tiny'


def random_recipe(path=CONFIG, overrides=()):
    """A recipe and parameters none of which is zero or one."""
    built = recipe.build(config.load(path, overrides))
    rng = np.random.RandomState(0)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    return built, jax.tree.map(
        lambda leaf: jax.numpy.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes
    )


def publish(folder, path=CONFIG, overrides=()):
    """Write the folder; returns its recipe and parameters."""
    built, params = random_recipe(path, overrides)
    convert.publish(built, lambda names: {name: params[name] for name in names}, folder)
    return built, params


if __name__ == '__main__':
    publish(sys.argv[1])
