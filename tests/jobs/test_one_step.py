"""One training step of every network on every kind of mesh: the loss and the parameters of one device."""

import jax
import numpy as np
import pytest
from configurations import configuration

from jaxgen import recipe
from jaxgen.data.pipeline import batches
from jaxgen.generate import make_generator
from jaxgen.program import assemble
from jaxgen.training import sharding
from jaxgen.training.step import number

pytestmark = pytest.mark.usefixtures('split_small')
BATCH = 8
NETWORKS = ('dit_folder', 'pixart_sigma', 'lightning_dit', 'var_imagenet', 'maskgit_imagenet')
NETWORKS += ('mvar_imagenet', 'givt_imagenet', 'ar_imagenet', 'flexvar_shapes')
MESHES = {
    'data': {'data': 8},
    'fsdp': {'fsdp': 8},
    'tensor': {'tensor': 4, 'data': 2},
    'sequence': {'sequence': 4, 'fsdp': 2},
    'all': {'data': 2, 'tensor': 2, 'sequence': 2},
}
ORDINARY = (
    ('dit_folder', 'data'),
    ('pixart_sigma', 'all'),
    ('var_imagenet', 'all'),
    ('maskgit_imagenet', 'all'),
    ('mvar_imagenet', 'all'),
    ('givt_imagenet', 'all'),
    ('ar_imagenet', 'all'),
    ('flexvar_shapes', 'all'),
)  # the others take their time
CASES = [
    pytest.param(network, mesh, marks=() if (network, mesh) in ORDINARY else pytest.mark.slow)
    for network in NETWORKS
    for mesh in MESHES
]


def program(network, mesh, **changes):
    """A config's miniature in float32 on a mesh; sixteen tokens or more, heads that divide."""
    config = configuration(network)
    config.model.update({'hidden': 48, 'heads': 4, 'depth': 2, 'dtype': 'float32'} | changes)
    config.tokenizer.dtype = 'float32'
    if network == 'dit_folder':
        del config.tokenizer.dtype
    if 'scales' in config.tokenizer.get('bottleneck', {}):
        config.tokenizer.bottleneck.scales = (2, 4)  # twenty tokens, which sequence divides
    if 'schedules' in config.objective:  # every device draws the same of these
        config.tokenizer.bottleneck.scales = (2, 4, 8)
        config.objective.schedules = ((2, 8), (2, 6, 8))
        del config.optimizer.options  # Muon's
    # Adam divides by the gradient's size; a floor keeps rounding of what is zero from counting.
    config.optimizer.update(name='adamw', learning_rate=1e-3, warmup=0, clip=1.0, options={'eps': 1e-3})
    config.train.update(batch=BATCH, sample_batch=BATCH)
    config.mesh = mesh
    return assemble(recipe.build(config), jax.devices()[: int(np.prod(list(mesh.values())))])


def stepped(built, start):
    """The loss of a step from parameters on the host, and the state after it."""
    own, frozen = built.recipe, built.frozen()
    state = jax.device_put(start, jax.tree.map(lambda leaf: leaf.sharding, built.abstract))
    source = batches(own.source('train'), own.conditioner.arrays, seed=0, batch=BATCH, threads=0)
    with jax.set_mesh(built.mesh):
        batch = sharding.to_global(next(source), built.mesh)
        step = built.steps[own.objective.phases[0].name]
        state, metrics = step(state, frozen, batch, jax.random.key(0), number(0))
    return float(metrics['loss'][0] / metrics['loss'][1]), state


@pytest.fixture(scope='module')
def alone():
    found = {}

    def once(network):
        if network not in found:
            built = program(network, {'data': 1})
            start = jax.device_get(built.fresh())
            loss, state = stepped(built, start)
            found[network] = start, loss, jax.device_get((state.params, state.ema, state.optimizer))
        return found[network]

    return once


def axes_of(tree):
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(tree)]
    split = [axes for spec in specs for axes in spec if axes]
    return {axis for axes in split for axis in ((axes,) if isinstance(axes, str) else axes)}


@pytest.mark.parametrize(('network', 'mesh'), CASES)
def test_a_step_is_that_of_one_device(network, mesh, alone):
    start, expected, after = alone(network)
    built = program(network, MESHES[mesh])
    loss, state = stepped(built, start)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    moved = 0
    for leaf, one in zip(jax.tree.leaves((state.params, state.ema, state.optimizer)), jax.tree.leaves(after)):
        np.testing.assert_allclose(leaf, one, rtol=0, atol=1e-5 * max(1, np.abs(one).max()))
    for leaf, before in zip(jax.tree.leaves(state.params), jax.tree.leaves(start.params)):
        moved = max(moved, np.abs(leaf - before).max())
    assert moved > 1e-5
    parameters = axes_of(state.params)
    assert parameters == set(MESHES[mesh]) & {'fsdp', 'tensor'}
    assert axes_of((state.optimizer, state.ema)) == parameters | set(MESHES[mesh]) & {'data'}
    for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(built.abstract)):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


@pytest.mark.parametrize(
    ('mesh', 'changes', 'words'),
    [
        ({'tensor': 7}, {}, 'mesh.tensor is 7, and no parameter'),
        ({'sequence': 8}, {'patch': 8}, 'mesh.sequence is 8, and no network'),
    ],
)
def test_an_axis_that_does_nothing_is_refused(mesh, changes, words):
    with pytest.raises(ValueError, match=words):
        program('dit_folder', mesh, **changes)


@pytest.mark.parametrize(
    'network',
    [
        'var_imagenet',
        'maskgit_imagenet',
        'ar_imagenet',
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ('mvar_imagenet', 'givt_imagenet', 'flexvar_shapes')
        ),
    ],
)
def test_what_is_drawn_is_that_of_one_device(network):
    """With parameters that look at everything; the codes that a network chooses are the same."""
    drawn, rng = {}, np.random.RandomState(0)
    start = jax.device_get(jax.jit(program(network, {'data': 1}).recipe.init)(jax.random.key(0)))
    start = jax.tree.map(lambda leaf: np.float32(leaf + 0.1 * rng.standard_normal(leaf.shape)), start)
    for mesh in ({'data': 1}, MESHES['all']):
        built = program(network, mesh)
        own = built.recipe
        params = {
            name: jax.device_put(tree, jax.tree.map(lambda leaf: leaf.sharding, built.layout(name)))
            for name, tree in start.items()
        }
        generate = make_generator(own, built.mesh, BATCH)
        examples = [own.conditioner.example(str(label)) for label in range(BATCH)]
        drawn[len(mesh)] = generate(params, examples, range(BATCH), own.sampler.knobs()).astype(int)
    one, several = drawn.values()
    assert one.std(0).max() > 5
    assert np.abs(one - several).max() <= 1
