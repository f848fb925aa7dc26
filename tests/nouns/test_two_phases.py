"""Generator and critic, one phase each: the critic at every step, the generator at every fifth, each with an
optimizer of its own, and a running norm of the pictures that the objective learns without gradients.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxgen.data.pipeline import batches
from jaxgen.jobs import train
from jaxgen.objectives import Objective, Phase
from jaxgen.program import assemble
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.digest import fingerprint
from nouns import tiny

STEPS, DECAY = 6, 0.5


class Conv(nn.Module):
    features: int = 3

    @nn.compact
    def __call__(self, x, t, cond, *, memory=None, per_layer=None, capture=(), train=False):
        return nn.Conv(self.features, (3, 3))(nn.silu(nn.Conv(8, (3, 3))(x))), {}, memory


def build_objective(networks: dict, tokenizer: Any):
    def judged(params, x):
        return networks['critic'](params['critic'], x, None, None)[0].mean((1, 2, 3))

    def generated(params, x):
        return networks['model'](params['model'], jnp.roll(x, 1, axis=0), None, None)[0]

    def critic(params, state, frozen, batch, keys, step):
        x = tokenizer.encode(params, batch, keys)
        gap = jax.nn.softplus(judged(params, generated(params, x))) + jax.nn.softplus(-judged(params, x))
        state = {'norm': DECAY * state['norm'] + (1 - DECAY) * (x**2).mean()}
        return gap.sum(), jnp.float32(gap.size), state, {}

    def generator(params, state, frozen, batch, keys, step):
        x = tokenizer.encode(params, batch, keys) / jnp.sqrt(state['norm'])
        loss = jax.nn.softplus(-judged(params, generated(params, x)))
        return loss.sum(), jnp.float32(loss.size), state, {}

    phases = (
        Phase('critic', ('critic',), critic),
        Phase('generator', ('model',), generator, when=lambda step: step % 5 == 0),
    )
    return Objective(phases, init=lambda key: {'norm': jnp.float32(1)})


def test_each_phase_moves_its_own(tmp_path):
    made = tiny.build(
        model={'name': f'{__name__}:Conv'},
        objective={'name': f'{__name__}:build_objective'},
        networks={'critic': {'module': {'name': f'{__name__}:Conv', 'features': 1}, 'ema': False}},
        optimizer={'clip': 0.0, 'phases': {'generator': {'name': 'sgd', 'options': {'momentum': 0.9}}}},
        train={'steps': STEPS, 'save_every': 1, 'keep': STEPS},
    )
    record, program = train.run(made, tmp_path), assemble(made)
    assert {'critic/loss', 'generator/loss'} <= set(record['metrics'])
    with Checkpoints(tmp_path / 'checkpoints', read_only=True) as checkpoints:
        walk = [program.fresh().trees()]
        walk += [checkpoints.restore(step, program.abstract.trees()) for step in checkpoints.steps()]
    moved = {
        name: [
            fingerprint(old['params'][name]) != fingerprint(new['params'][name])
            for old, new in zip(walk, walk[1:])
        ]
        for name in ('critic', 'model')
    }
    assert moved == {'critic': [True] * STEPS, 'model': [True, False, False, False, False, True]}
    assert set(walk[-1]['ema']) == {'model'}

    norm, source = 1.0, batches(made.source('train'), seed=0, batch=8, threads=0)
    for state in walk[1:]:
        norm = DECAY * norm + (1 - DECAY) * ((next(source)['image'] / 127.5 - 1) ** 2).mean()
        assert float(state['state']['norm']) == pytest.approx(norm, rel=1e-5)
    counts = {
        phase: {int(leaf) for leaf in jax.tree.leaves(tree) if leaf.ndim == 0}
        for phase, tree in walk[-1]['optimizer'].items()
    }
    assert counts == {'critic': {STEPS}, 'generator': {2}}
