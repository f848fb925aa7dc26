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
from jaxgen.program import assemble
from jaxgen.training import sharding
from jaxgen.training.step import number

pytestmark = pytest.mark.usefixtures('split_small')
ONE = {'fsdp': 1}
MESHES = {'8': {'fsdp': 8}, '2x4': {'data': 2, 'fsdp': 4}, '2x2x2': {'data': 2, 'fsdp': 2, 'tensor': 2}}
TENSOR = ((r'mlp/up/kernel', (None, 'tensor')), (r'mlp/down/kernel', ('tensor', None)))
PROMPTS = ['a red circle', 'two blue squares', 'a cat']  # three, which no mesh could split
SETTINGS = (
    "data={'name': 'synthetic', 'resolution': 16, 'captions': True, 'examples': 16}",
    # Adam divides by the gradient's size; a floor keeps rounding of what is zero from counting.
    "optimizer={'name': 'adamw', 'learning_rate': 1e-4, 'warmup': 0, 'options': {'eps': 1e-3}}",
    'train.batch=8',
    'sampler.steps=4',
)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp('published') / 'weights'
    published.publish(folder)
    return folder


def some(*ordinary):
    """All meshes; those not named wait for the full run."""
    slow = pytest.mark.slow
    names = [name if name in ordinary else pytest.param(name, marks=slow) for name in MESHES]
    return pytest.mark.parametrize('mesh', names)


def configured(weights, mesh):
    rules = TENSOR if 'tensor' in mesh else ()
    overrides = (*SETTINGS, f'mesh={mesh}', f'networks.model.rules={rules}')
    return recipe.build(pretrained.configured({}, str(weights), overrides))


def program(weights, mesh):
    return assemble(configured(weights, mesh), jax.devices()[: np.prod(list(mesh.values()))])


@pytest.fixture(scope='module')
def alone(weights):
    """One device, and the published parameters on it."""
    built = program(weights, ONE)
    return built, built.loaded(built.recipe.networks)


def read_and_drawn(built, params):
    """The features of the prompts, and their pictures."""

    def load(names):
        return {name: params[name] for name in names}

    examples, _ = Features(built, load, '')([built.recipe.conditioner.example(one) for one in PROMPTS])
    return [example['text'] for example in examples], drawing(built, load)(PROMPTS, seed=3)


@pytest.fixture(scope='module')
def expected(alone):
    return read_and_drawn(*alone)


def trained(built):
    """Losses and parameters of two steps from the published weights."""
    own, losses = built.recipe, []
    state, frozen = built.fresh(), built.frozen()
    source = batches(own.source('train'), own.conditioner.arrays, seed=0, batch=8, threads=0)
    for step in range(2):
        with jax.set_mesh(built.mesh):
            batch = sharding.to_global(next(source), built.mesh)
            state, metrics = built.steps['denoise'](state, frozen, batch, jax.random.key(0), number(step))
        losses.append(float(metrics['loss'][0] / metrics['loss'][1]))
    return losses, jax.device_get(state.params)


@some('8', '2x2x2')
def test_weights_on_a_mesh_draw_as_on_one_device(weights, alone, expected, mesh):
    built = program(weights, MESHES[mesh])
    params = built.loaded(built.recipe.networks)
    split = set()
    for name, tree in params.items():
        trees = (tree, built.layout(name), alone[1][name])
        for leaf, where, array in zip(*map(jax.tree.leaves, trees), strict=True):
            assert leaf.sharding == where.sharding
            np.testing.assert_array_equal(leaf, array)
            split |= {(name, axis) for axis in leaf.sharding.spec if axis}
    assert {(name, 'fsdp') for name in ('model', 'text', 'tokenizer')} <= split
    assert (('model', 'tensor') in split) == ('tensor' in MESHES[mesh])

    features, images = read_and_drawn(built, params)
    for ours, one in zip(features, expected[0], strict=True):
        np.testing.assert_allclose(ours, one, atol=1e-5 * np.abs(one).max())
    assert images.std() > 10
    np.testing.assert_allclose(images.astype(int), expected[1].astype(int), atol=1)


@some('2x2x2')
def test_training_from_weights_on_a_mesh_is_as_on_one_device(weights, alone, mesh):
    """The text encoder and the autoencoder frozen and split like the model."""
    losses, params = trained(alone[0])
    ours, changed = trained(program(weights, MESHES[mesh]))
    assert losses[0] != losses[1]
    np.testing.assert_allclose(ours, losses, rtol=1e-5)
    trees = changed['model'], params['model'], alone[1]['model']
    moved = []
    for leaf, one, before in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(leaf, one, atol=5e-6)
        moved.append(np.abs(one - before).max())
    assert max(moved) > 1e-4


def test_convert_on_a_mesh_there_and_back(weights, tmp_path):
    built = configured(weights, MESHES['2x4'])
    convert.run(built, tmp_path / 'run', weights=str(weights))
    convert.run(built, tmp_path / 'run', export=str(tmp_path / 'back'))
    assert_same_tensors(weights, tmp_path / 'back')
