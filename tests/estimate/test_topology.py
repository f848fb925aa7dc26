"""Names of slices, and stand-ins for their chips where there is no compiler for them."""

import math

import jax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.estimate import chips, topology
from jaxgen.training import sharding
from jaxgen.uncached import uncached


@pytest.mark.parametrize(
    'name', [f'{kind}:{each}' for kind in topology.SLICES for each in topology.SLICES[kind]]
)
def test_stand_ins_fill_their_slice(name):
    devices = topology.devices(name, absent=True)
    lengths = [int(side) for side in name.partition(':')[2].split('x')]
    assert len(devices) == len(set(devices)) == math.prod(lengths)
    assert [max(one.coords[axis] for one in devices) + 1 for axis in range(len(lengths))] == lengths
    assert chips.chip(devices[0].device_kind).name == name.partition(':')[0]


def test_stand_ins_carry_shardings():
    mesh = sharding.make_mesh({'data': 2, 'fsdp': -1}, topology.devices('2*v5e:4x4', absent=True))
    assert mesh.shape['fsdp'] == 16
    assert isinstance(mesh, Mesh) and {one.slice_index for one in mesh.devices[0].flat} == {0}
    assert NamedSharding(mesh, PartitionSpec('fsdp')).shard_shape((64, 3)) == (4, 3)


@pytest.mark.parametrize(
    'name, told',
    [
        ('v5:2x4', "chip 'v5'.* nearest is 'v5[ep]'"),
        ('v5e', 'write for example'),
        ('v5e:2x', "nearest is 'v5e:1x1'"),
        ('0*v5e:2x4', 'names no slice'),
        ('', 'write for example'),
    ],
)
def test_other_names_are_refused_with_the_nearest(name, told):
    with pytest.raises(ValueError, match=told):
        topology.devices(name, absent=True)


def test_without_a_compiler_it_says_where_to_get_one(monkeypatch):
    monkeypatch.setattr(topology, 'version', lambda: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "jax\[tpu\]"'):
        topology.devices('v5e:2x4')


def test_the_cache_is_off_while_compiling_for_others():
    before = jax.config.jax_enable_compilation_cache
    with uncached():
        assert not jax.config.jax_enable_compilation_cache
    assert jax.config.jax_enable_compilation_cache == before
