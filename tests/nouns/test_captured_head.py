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
from jaxgen.objectives import Objective, Phase
from jaxgen.program import assemble
from jaxgen.training.step import number
from nouns import tiny

WIDTH, DEPTH, CAPTURED = 16, 3, 1


class Head(nn.Module):
    """Features [B, L, D] to the logits of the classes."""

    classes: int

    def blank(self, x, t, cond):
        return (jnp.zeros((1, 1, WIDTH)),)

    @nn.compact
    def __call__(self, x):
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


def moved(old, new):
    """Which rows of each array, which in a stack are its layers, are no longer the same."""
    return jax.tree.map(lambda a, b: np.abs(np.asarray(b) - a).reshape(len(a), -1).max(1) > 0, old, new)


def test_the_gradient_stops_at_the_capture():
    made = tiny.build(
        model={'name': 'dit', 'patch': 4, 'hidden': WIDTH, 'depth': DEPTH, 'heads': 2},
        objective={'name': f'{__name__}:build_objective'},
        networks={'head': {'module': {'name': f'{__name__}:Head'}}},
    )
    program = assemble(made, jax.devices()[:1])
    before = jax.tree.map(np.asarray, tiny.randomised(made))
    state, frozen = program.fresh(), program.frozen()
    state, losses = state.replace(params=jax.tree.map(jnp.array, before)), []
    batch = next(batches(made.source('train'), made.conditioner.arrays, seed=0, batch=8, threads=0))
    for step in range(8):
        state, metrics = program.steps['probe'](state, frozen, batch, jax.random.key(0), number(step))
        losses.append(float(metrics['loss'][0]))
        if step == 0:
            change = moved(before, state.params)
    assert losses[-1] < losses[0]
    layers = np.any(jax.tree.leaves(change['model']['blocks']), axis=0)
    assert layers.tolist() == [layer <= CAPTURED for layer in range(DEPTH)]
    assert all(leaf.any() for leaf in jax.tree.leaves((change['model']['patch'], change['head'])))
    assert not any(leaf.any() for leaf in jax.tree.leaves(change['model']['final']))
