"""Eight devices, cut in four ways, train as one does, and read each other's checkpoints."""

import itertools

import jax
import numpy as np
import pytest
from configurations import configuration

from jaxgen import recipe
from jaxgen.data.pipeline import batches
from jaxgen.program import assemble
from jaxgen.training import sharding
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.digest import fingerprint
from jaxgen.training.state import TrainState
from jaxgen.training.step import number

STEPS, BATCH = 20, 16
MESHES = {name: tuple(map(int, name.split('x'))) for name in ('8x1x1x1', '1x8x1x1', '2x2x2x1', '2x1x2x2')}


@pytest.fixture(autouse=True)
def light():
    """Programs compiled without optimisation."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def program(name, mesh):
    """A config's miniature in float32, just wide enough that fsdp splits its kernels, on a mesh."""
    config = configuration(name)
    config.model.update(hidden=64, depth=2, dtype='float32')
    if 'dtype' in config.conditioner:
        config.conditioner.dtype = 'float32'
    # Adam divides by the gradient's size; a floor keeps rounding of what is zero from counting.
    config.optimizer.update(name='adamw', learning_rate=1e-3)
    config.optimizer.options = {'eps': 1e-5}
    config.train.update(batch=BATCH, sample_batch=BATCH, steps=STEPS)
    config.mesh = dict(zip(sharding.AXES, mesh))
    return assemble(recipe.build(config), jax.devices()[: int(np.prod(mesh))])


def trained(built, start):
    """The losses of all steps from a state on the host, and the last state."""
    own, losses, frozen, (run,) = built.recipe, [], built.frozen(), built.steps.values()
    state = jax.device_put(start, jax.tree.map(lambda leaf: leaf.sharding, built.abstract))
    source = batches(own.source('train'), own.conditioner.arrays, seed=0, batch=BATCH, threads=0)
    for step in range(STEPS):
        with jax.set_mesh(built.mesh):
            batch = sharding.to_global(next(source), built.mesh)
            state, metrics = run(state, frozen, batch, jax.random.key(0), number(step))
        losses.append(metrics['loss'][0] / metrics['loss'][1])
    return np.asarray(jax.device_get(losses)), state


def assert_placed(state, built):
    for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(built.abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


def used(built):
    """The mesh axes that split some parameter."""
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(built.abstract.params)]
    return {axis for spec in specs for axis in spec if axis}


@pytest.mark.parametrize(
    'name', ['dit_folder', 'var_shapes', pytest.param('pixart_folder', marks=pytest.mark.slow)]
)
def test_every_mesh_trains_as_one_device_and_reads_the_others(name, tmp_path):
    alone = program(name, (1, 1, 1, 1))
    start = jax.device_get(alone.fresh())
    losses, _ = trained(alone, start)
    assert len(set(losses.tolist())) == STEPS and losses[-1] < losses[0]
    built, digests = {}, {}
    for mesh, shape in MESHES.items():
        built[mesh] = program(name, shape)
        ours, state = trained(built[mesh], start)
        np.testing.assert_allclose(ours, losses, atol=1e-4, rtol=1e-4, err_msg=mesh)
        assert_placed(state, built[mesh])
        assert used(built[mesh]) == {
            axis for axis, size in zip(('fsdp', 'tensor'), shape[1:3]) if size > 1
        }, mesh
        digests[mesh] = fingerprint(state.trees())
        with Checkpoints(tmp_path / mesh) as checkpoints:
            checkpoints.save(STEPS, state.trees())
    for one, other in itertools.permutations(MESHES, 2):
        with Checkpoints(tmp_path / one, read_only=True) as checkpoints:
            state = TrainState(**checkpoints.restore(STEPS, built[other].abstract.trees()))
        assert_placed(state, built[other])
        assert fingerprint(state.trees()) == digests[one], (one, other)
