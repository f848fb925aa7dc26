"""Programs compiled for a TPU slice of eight chips that is not there (needs libtpu, the extra `tpu`)."""

import importlib.util
import math

import jax
import pytest

from jaxgen import config as configs
from jaxgen import recipe
from jaxgen.estimate import topology
from jaxgen.generate import abstract_call, draw_step
from jaxgen.program import assemble
from jaxgen.training import sharding
from jaxgen.uncached import uncached

pytestmark = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')
MEMORY = 16e9  # bytes of a chip
SIGMA = 'configs/pixart_sigma.py'


@pytest.fixture(scope='module')
def chips():
    with uncached():
        yield topology.devices('v5e:2x4')


def compiled(program, function, *arguments):
    with jax.set_mesh(program.mesh):
        return function.lower(*arguments).compile()


def features(program, batch):
    """The text encoder's program, and what it is called with."""
    conditioner = program.recipe.conditioner
    arrays = conditioner.arrays([{'caption': 'a cat', 'size': (1, 1)}])
    params = {'text': program.layout('text')}
    return jax.jit(conditioner.features), params, split(program, batch, arrays)


def drawing(program, batch, decode=True):
    """Pictures, or their latents, from text features: the program, and what it is called with."""
    finish = None if decode else lambda params, request, latents: latents
    return draw_step(program.recipe, program.mesh, finish=finish), *abstract_call(program, batch)


def split(program, batch, arrays):
    rows = sharding.batch_sharding(program.mesh)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype, sharding=rows), arrays)


def size(tree):
    """The bytes a chip of a tree that is split over them."""
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree))
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shards)


def test_the_programs_of_a_text_to_image_run(chips):
    program = assemble(recipe.build(configs.load(f'{SIGMA}:tiny')), chips)
    for made in (features(program, 8), drawing(program, 8)):
        whose = jax.tree.leaves(compiled(program, *made).output_shardings)
        assert not any(each.is_fully_replicated for each in whose)  # every chip has pictures of its own
    step = compiled(program, program.steps['denoise'], *program.abstract_arguments()).memory_analysis()
    assert step.alias_size_in_bytes >= size(program.abstract.params)  # the state's memory is taken over


@pytest.mark.slow
@pytest.mark.parametrize('variant, batch', [('1024', 32), ('2K', 8)])
def test_full_size_fits(variant, batch, chips):
    """PixArt-Sigma with guidance, and T5 XXL on 300 tokens."""
    program = assemble(recipe.build(configs.load(f'{SIGMA}:{variant}')), chips)
    for made in (features(program, batch), drawing(program, batch, decode=False)):
        used = compiled(program, *made).memory_analysis()
        print(f'{variant}: {used.argument_size_in_bytes:,} and {used.temp_size_in_bytes:,} bytes')
        assert used.argument_size_in_bytes + used.temp_size_in_bytes < MEMORY
