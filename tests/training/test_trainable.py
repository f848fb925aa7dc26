"""Networks of which only some parameters are trained."""

import re

import jax
import numpy as np
import pytest
from nouns import tiny

from jaxgen.data.pipeline import batches
from jaxgen.program import assemble
from jaxgen.training import sharding
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.step import number

PATTERNS = ('bias$', 'final/')


def program(trainable):
    made = tiny.build(
        model={'name': 'dit', 'patch': 4, 'hidden': 16, 'heads': 2, 'depth': 1},
        path={'name': 'linear'},
        prediction={'output': 'velocity', 'time': 'thousand'},
        optimizer={'name': 'adamw', 'weight_decay': 0.1},
        networks={'model': {'trainable': trainable}},
    )
    return assemble(made, jax.devices()[:1])


def named(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {sharding.path_string(path): np.asarray(leaf) for path, leaf in leaves}


def test_only_what_is_named_moves_and_has_optimizer_state(tmp_path):
    built = program(PATTERNS)
    own, state = built.recipe, built.fresh()
    before, frozen = named(state.params), built.frozen()
    source = batches(own.source('train'), own.conditioner.arrays, seed=0, batch=8, threads=0)
    for step in range(2):
        with jax.set_mesh(built.mesh):
            batch = sharding.to_global(next(source), built.mesh)
            state, _ = built.steps['denoise'](state, frozen, batch, jax.random.key(0), number(step))
    after = named(state.params)
    moved = {name for name in before if (before[name] != after[name]).any()}
    chosen = {name for name in before if any(re.search(pattern, name) for pattern in PATTERNS)}
    assert moved and moved <= chosen < set(before)
    moments = [name.partition('/mu/')[2] for name in named(state.optimizer) if '/mu/' in name]
    assert set(moments) == chosen
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state.trees())
        stored = checkpoints.restore(2, built.abstract.trees())
    jax.tree.map(np.testing.assert_array_equal, stored, state.trees())


@pytest.mark.parametrize(
    ('trainable', 'sentence'),
    [
        (('lora',), r"trainable is \('lora',\), which no parameter has.*'blocks/"),
        (('(',), 'a pattern that is none'),
    ],
)
def test_patterns_that_name_nothing_are_refused(trainable, sentence):
    with pytest.raises(ValueError, match=sentence):
        _ = program(trainable).abstract
