"""The train step as it is compiled for TPU slices that are not there (needs libtpu, the extra `tpu`)."""

import importlib.util
import math
import re

import jax
import pytest

from jaxgen import config as configs
from jaxgen import estimate, recipe
from jaxgen.estimate import topology
from jaxgen.program import assemble
from jaxgen.training import compiler, cost
from jaxgen.uncached import uncached

LIBTPU = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')
XL = ('model.depth=4', 'train.batch=256', 'data.cache=nowhere')
SMALL = ('model.hidden=256', 'model.heads=4', 'model.depth=2', 'train.batch=16', 'data.cache=nowhere')


def program(overrides, slice_name):
    config = configs.load('configs/dit_imagenet.py', overrides)
    return assemble(recipe.build(config), topology.devices(slice_name))


def compiled(built):
    arguments = built.abstract_arguments()
    with uncached(), jax.set_mesh(built.mesh):
        return built.steps['denoise'].lower(*arguments).compile()


def held(tree):
    """The bytes a chip of a tree of shapes that are placed."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def gathered(text):
    """(dtype, elements) of everything that is gathered from other chips."""
    found = re.findall(r' = \(?(\w+)\[([\d,]*)\][^=]* all-gather(?:-start)?\(', text)
    return [(dtype, math.prod(map(int, sizes.split(',')))) for dtype, sizes in found if sizes]


def test_only_tpus_are_told_of_their_compilers_options():
    assert compiler.options(jax.make_mesh((1,), ('data',))) is None
    assert 'cpu' not in compiler.OPTIONS and compiler.OPTIONS['tpu']


def test_a_run_may_tell_the_compiler_more():
    built = assemble(
        recipe.build(
            configs.load('configs/quickstart.py:tiny', ('train.compiler={"xla_no_such_option": 1}',))
        ),
        jax.devices()[:1],
    )
    with jax.set_mesh(built.mesh), pytest.raises(Exception, match='xla_no_such_option'):
        next(iter(built.steps.values())).lower(*built.abstract_arguments()).compile()


@LIBTPU
def test_what_a_step_sends_and_keeps():
    built = program(SMALL, 'v5e:2x2')
    step = compiled(built)
    text, used = step.as_text(), step.memory_analysis()
    kernels = [dtype for dtype, elements in gathered(text) if elements >= 256 * 256]
    assert kernels and set(kernels) == {'bf16'}  # parameters are cast where they lie, then sent
    assert 'windowed_dot_general' not in text
    assert not re.search(r' (infeed|outfeed|send|recv|send-done|recv-done)\(', text)
    assert used.alias_size_in_bytes >= held(built.abstract)  # the whole state is updated in place


@LIBTPU
@pytest.mark.slow
def test_a_step_of_xl_width_is_fast():
    built = program(XL, 'v5e:2x4')
    plain = program((*XL, 'model.remat=none', 'model.attention=xla'), 'v5e:2x4')
    arguments = plain.abstract_arguments()
    with jax.set_mesh(plain.mesh):
        flops = cost.flops(plain.steps['denoise'], *arguments)
    found = estimate.estimate(compiled(built), 'v5e', flops / built.mesh.size)
    print(found.table())
    assert found.fits
    assert found.mfu > 0.6
    assert found.network < 0.1 * found.seconds
