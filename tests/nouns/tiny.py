"""What the cases share: the smallest recipe of ordinary parts, and parameters without a zero among them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import recipe

SECTIONS = {
    'data': {'name': 'synthetic', 'resolution': 8, 'classes': 4, 'captions': False, 'examples': 8},
    'tokenizer': {'name': 'pixels'},
    'conditioner': {'name': 'labels'},
    'objective': {'name': 'diffusion'},
    'optimizer': {'name': 'adam', 'learning_rate': 1e-2},
    'train': {'steps': 8, 'batch': 8, 'sample_batch': 8, 'log_every': 4},
}


def build(**changes: dict[str, Any]) -> recipe.Recipe:
    """The recipe of SECTIONS with sections added or, where there is one, keys of it changed."""
    return recipe.build(
        {**SECTIONS, **{name: {**SECTIONS.get(name, {}), **section} for name, section in changes.items()}}
    )


def randomised(made: recipe.Recipe) -> dict[str, Any]:
    """Parameters of the recipe's networks as if trained: small, and nothing is zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype), shapes)
