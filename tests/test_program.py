"""One training, however it is cut over devices: losses, parameters, where they lie and what is compiled."""

import jax
import numpy as np
import pytest
from configurations import configuration
from jax.sharding import PartitionSpec

from jaxgen import recipe
from jaxgen.data.pipeline import batches
from jaxgen.program import assemble
from jaxgen.training import sharding
from jaxgen.training.step import number

STEPS = 3
TENSOR = ((r'mlp/up/kernel', (None, 'tensor')), (r'mlp/down/kernel', ('tensor', None)))


@pytest.fixture(scope='module', autouse=True)
def light(tmp_path_factory):
    """Programs compiled without optimisation, data of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JAXGEN_DATA_DIR', str(tmp_path_factory.mktemp('data')))
        jax.config.update('jax_disable_most_optimizations', True)
        yield
        jax.config.update('jax_disable_most_optimizations', False)


def program(mesh, accumulate=1, batch=8, rules=()):
    """The quick start, just wide enough that its kernels are split by default."""
    config = configuration('quickstart')
    config.model.update(hidden=64, depth=1)
    # Adam divides by the gradient's size; a floor keeps rounding of what is zero from counting.
    config.optimizer.options = {'eps': 1e-5}
    config.mesh = mesh
    config.networks = {'model': {'rules': rules}}
    config.train.update(accumulate=accumulate, batch=batch)
    devices = jax.devices()[: int(np.prod(list(mesh.values())))]
    return assemble(recipe.build(config), devices)


def walk(built, steps=STEPS):
    """Losses of so many steps, and the states before and after the last of them."""
    own = built.recipe
    state, frozen = built.fresh(), built.frozen()
    source = batches(own.source('train'), own.conditioner.arrays, seed=0, batch=own.train.batch, threads=0)
    losses = []
    for step in range(steps):
        before = state
        with jax.set_mesh(built.mesh):
            batch = sharding.to_global(next(source), built.mesh)
            state, metrics = built.steps['denoise'](state, frozen, batch, jax.random.key(0), number(step))
        total, weight = metrics['loss']
        assert weight == own.train.batch
        losses.append(float(total / weight))
    return losses, before, state


@pytest.fixture(scope='module')
def alone():
    losses, _, state = walk(program({'data': 1}, batch=16))
    return losses, jax.tree.map(np.asarray, (state.params, state.ema))


def assert_same(alone, losses, state):
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    assert len(set(losses)) == STEPS
    ours = (state.params, state.ema)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, alone[1])


@pytest.mark.parametrize(
    'mesh, rules',
    [({'data': 8}, ()), ({'fsdp': 8}, ()), ({'data': 2, 'fsdp': 2, 'tensor': 2}, TENSOR)],
    ids=['data', 'fsdp', 'all'],
)
def test_mesh_changes_no_number(alone, mesh, rules):
    built = program(mesh, batch=16, rules=rules)
    losses, before, after = walk(built)
    assert_same(alone, losses, after)
    for leaf, like in zip(jax.tree.leaves(after), jax.tree.leaves(built.abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert built.steps['denoise']._cache_size() == 1
    kernels = kernels_of(built)
    if 'fsdp' in mesh:
        split = [name for name, spec in kernels.items() if 'fsdp' in spec]
        assert any(name.startswith('model/') for name in split)
    if rules:
        split = [name for name, spec in kernels.items() if 'tensor' in spec]
        assert any('mlp' in name for name in split)


def kernels_of(built):
    leaves = jax.tree_util.tree_flatten_with_path(built.abstract.params)[0]
    return {sharding.path_string(path): leaf.sharding.spec for path, leaf in leaves}


def test_rules_reach_the_optimizer_and_the_average():
    built = program({'tensor': 8}, rules=TENSOR)
    for tree in (built.abstract.params, built.abstract.ema, built.abstract.optimizer):
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        specs = [
            leaf.sharding.spec
            for path, leaf in leaves
            if 'model/' in (name := sharding.path_string(path)) and 'mlp/up/kernel' in name
        ]
        assert specs and all(spec == PartitionSpec(None, None, 'tensor') for spec in specs)


def test_accumulating_changes_no_number(alone):
    losses, _, state = walk(program({'data': 2}, accumulate=2, batch=16))
    assert_same(alone, losses, state)
