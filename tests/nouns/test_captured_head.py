"""A loss on a feature in the middle of the network, read by a head that is a network of its own.

What representation alignment, distilled discriminators and probes need: the gradient reaches the layers
below the captured one and the head, and nothing above.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data.pipeline import batches
from jaxgen.jobs import train
from jaxgen.objectives import Objective, Phase
from nouns import tiny

WIDTH, DEPTH, CAPTURED = 16, 3, 1


class Head(nn.Module):
    """Features [B, L, D] to the logits of the classes."""

    classes: int

    @nn.compact
    def __call__(self, x, t=None, cond=None):
        if self.is_initializing():  # a recipe initialises every network with latents; this one reads features
            x = jnp.zeros((1, 1, WIDTH))
        return nn.Dense(self.classes)(x.mean(1))


def build_objective(networks: dict, tokenizer: Any, conditioner: Any):
    def loss(params, state, frozen, batch, keys, step):
        x, site = tokenizer.encode(params, batch, keys), f'{CAPTURED}.out'
        cond = conditioner.embed(params, batch, jnp.ones(len(x), bool), keys)
        t = jnp.zeros(len(x))
        _, features, _ = networks['model'](params['model'], x, t, cond, capture=(site,), train=True)
        logits = jax.nn.log_softmax(networks['head'](params['head'], features[site]))
        errors = -jnp.take_along_axis(logits, batch['label'][:, None], axis=1)
        return errors.sum(), jnp.float32(errors.size), state, {}

    return Objective((Phase('probe', ('model', 'head'), loss),))


def test_the_gradient_stops_at_the_capture(tmp_path):
    made = tiny.build(
        model={'name': 'dit', 'patch': 4, 'hidden': WIDTH, 'depth': DEPTH, 'heads': 2},
        objective={'name': f'{__name__}:build_objective'},
        networks={'head': {'module': {'name': f'{__name__}:Head'}}})
    metrics = train.run(made, tmp_path)['metrics']
    assert metrics['probe/loss'] < np.log(4) - 0.1

    keys = jax.random.split(jax.random.key(0), 4)
    batch = next(batches(made.source('train'), made.conditioner.arrays, seed=0, batch=4, threads=0))

    @jax.jit
    @jax.grad
    def gradient(params):
        return made.objective.phases[0].loss(params, {}, {'networks': {}}, batch, keys, 0)[0]

    gradients = gradient(tiny.randomised(made))
    for leaf in jax.tree.leaves(gradients['model']['blocks']):
        assert [bool(layer.any()) for layer in leaf] == [layer <= CAPTURED for layer in range(DEPTH)]
    assert all(leaf.any() for leaf in jax.tree.leaves((gradients['model']['patch'], gradients['head'])))
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients['model']['final']))
