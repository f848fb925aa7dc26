"""Published weights on eight devices, cut in three ways: the tensors, pictures and losses of one device."""

import jax
import numpy as np
import published
import pytest
from test_convert import assert_same_tensors

from jaxgen import pretrained, recipe
from jaxgen.data.pipeline import batches
from jaxgen.features import Features
from jaxgen.generate import drawing
from jaxgen.jobs import convert
from jaxgen.program import assemble, number
from jaxgen.training import sharding

ONE = {'fsdp': 1}
MESHES = {'8': {'fsdp': 8}, '2x4': {'data': 2, 'fsdp': 4}, '2x2x2': {'data': 2, 'fsdp': 2, 'tensor': 2}}
TENSOR = ((r'mlp/up/kernel', (None, 'tensor')), (r'mlp/down/kernel', ('tensor', None)))
PROMPTS = ['a red circle', 'two blue squares', 'a cat']  # no batch that a mesh could split
DATA = "data={'name': 'synthetic', 'resolution': 16, 'captions': True, 'examples': 16}"
OPTIMIZER = "optimizer={'name': 'adamw', 'learning_rate': 1e-3, 'warmup': 0, 'options': {'eps': 1e-5}}"


@pytest.fixture(autouse=True)
def light(monkeypatch, tmp_path):
    """Tiny arrays are split as large ones are, and programs compiled without optimisation."""
    monkeypatch.setattr(sharding, 'SMALL', 2**8)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp('published') / 'weights'
    published.publish(folder)
    return folder


def configured(weights, mesh):
    rules = TENSOR if 'tensor' in mesh else ()
    overrides = (DATA, OPTIMIZER, f'mesh={mesh}', f'networks.model.rules={rules}', 'train.batch=8')
    return recipe.build(pretrained.configured({}, str(weights), (*overrides, 'sampler.steps=4')))


def program(weights, mesh):
    return assemble(configured(weights, mesh), jax.devices()[: np.prod(list(mesh.values()))])


def read_and_drawn(program, folder):
    """The features of the prompts, and their pictures."""
    read = Features(program, program.loaded, str(folder))
    examples = read([program.recipe.conditioner.example(prompt) for prompt in PROMPTS])
    return [one['text'] for one in examples], drawing(program, program.loaded)(PROMPTS, seed=3)


def trained(program):
    """Losses and parameters of two steps from the published weights."""
    own, losses = program.recipe, []
    state, frozen = program.fresh(), program.frozen()
    source = batches(own.source('train'), own.conditioner.arrays, seed=0, batch=8, threads=0)
    for step in range(2):
        with jax.set_mesh(program.mesh):
            batch = sharding.to_global(next(source), program.mesh)
            state, metrics = program.steps['denoise'](state, frozen, batch, jax.random.key(0), number(step))
        losses.append(float(metrics['loss'][0] / metrics['loss'][1]))
    return losses, jax.device_get(state.params)


@pytest.fixture(scope='module')
def alone(weights, tmp_path_factory):
    """What one device makes of the weights."""
    built = program(weights, ONE)
    params = jax.device_get(built.loaded(built.recipe.networks))
    return params, *read_and_drawn(built, tmp_path_factory.mktemp('features')), *trained(built)


@pytest.mark.parametrize('mesh', MESHES)
def test_a_mesh_does_as_one_device(weights, alone, mesh, tmp_path):
    built = program(weights, MESHES[mesh])
    params, features, images, losses, after = alone
    loaded = built.loaded(built.recipe.networks)
    split = set()
    for name, tree in loaded.items():
        like = jax.tree.leaves(built.layout(name))
        for leaf, where, array in zip(jax.tree.leaves(tree), like, jax.tree.leaves(params[name]), strict=True):
            assert leaf.sharding == where.sharding
            split |= {(name, axis) for axis in leaf.sharding.spec if axis}
            np.testing.assert_array_equal(leaf, array)
    assert {(name, 'fsdp') for name in ('model', 'text', 'tokenizer')} <= split
    assert ('tensor' in MESHES[mesh]) == (('model', 'tensor') in split)

    ours, drawn = read_and_drawn(built, tmp_path)
    for one, other in zip(ours, features, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())
    assert images.std() > 10
    np.testing.assert_allclose(drawn.astype(int), images.astype(int), atol=1)

    lost, changed = trained(built)
    assert len(set(losses)) == 2
    np.testing.assert_allclose(lost, losses, rtol=1e-5)
    for path, array in jax.tree_util.tree_leaves_with_path(changed):
        np.testing.assert_allclose(array, dict(jax.tree_util.tree_leaves_with_path(after))[path], atol=1e-5)


def test_convert_on_a_mesh_there_and_back(weights, tmp_path):
    built = configured(weights, MESHES['2x4'])
    convert.run(built, tmp_path / 'run', weights=str(weights))
    convert.run(built, tmp_path / 'run', export=str(tmp_path / 'back'))
    assert_same_tensors(weights, tmp_path / 'back')
