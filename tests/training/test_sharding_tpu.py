"""Meshes of TPU slices that are not there (needs libtpu, the extra `tpu`)."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.estimate import topology
from jaxgen.training import sharding, zero
from jaxgen.uncached import uncached

pytestmark = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')


@pytest.fixture(scope='module', autouse=True)
def anew():
    with uncached():
        yield


@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('v5e:16x16', {'data': 16, 'fsdp': 16}),
        ('v5e:16x16', {'fsdp': 32, 'sequence': 8}),
        ('v6e:4x4', {'data': 4, 'tensor': 2, 'sequence': 2}),
        ('v5p:2x2x4', {'fsdp': -1}),
    ],
)
def test_the_hosts_of_a_pod_have_all_rows_once_for_each_copy(name, shape):
    mesh = sharding.make_mesh(shape, topology.devices(name))
    hosts = {device.process_index for device in mesh.devices.flat}
    rows = [sharding.local_rows(mesh, 512, host) for host in hosts]
    assert len({len(one) for one in rows}) == 1
    found, copies = np.unique(np.concatenate(rows), return_counts=True)
    np.testing.assert_array_equal(found, range(512))
    assert len(set(copies.tolist())) == 1


def test_inner_axes_are_neighbours():
    mesh = sharding.make_mesh({'data': 64, 'sequence': 4}, topology.devices('v5e:16x16'))
    for group in mesh.devices.reshape(64, 4):
        places = np.array([device.coords for device in group])
        assert np.ptp(places, axis=0).sum() <= 3, places


def test_slices_are_told_apart_by_data_alone():
    both = topology.devices('2*v5e:2x4')
    assert sharding.slices(both) == 2
    mesh = sharding.make_mesh({'data': 4, 'fsdp': 4}, both)
    where = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (
        (where[:2] == where[0, 0]).all() and (where[2:] == where[-1, 0]).all() and where[0, 0] != where[-1, 0]
    )
    with pytest.raises(ValueError, match='2 slices.*mesh.data is 1; make it a multiple of 2'):
        sharding.make_mesh({'fsdp': -1}, both)


def test_only_sums_of_gradients_cross_slices():
    """A layer's step with parameters split over fsdp in a slice and the same in both."""
    both = topology.devices('2*v5e:2x4')
    mesh = sharding.make_mesh({'data': 2, 'fsdp': 8}, both)
    tree = {'kernel': jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    params = sharding.placed(tree, (), mesh)
    moments = sharding.placed(tree, (), mesh, spread=True)
    assert moments['kernel'].sharding == params['kernel'].sharding  # not split between slices

    def step(params, moments, x):
        gradients = jax.grad(lambda p: (jnp.tanh(x @ p['kernel']) ** 2).sum())(params)
        moments = jax.tree.map(lambda m, g: 0.9 * m + g, moments, zero.spread(gradients, (), mesh))
        return jax.tree.map(lambda p, m: p - 0.1 * m, params, moments), moments

    x = jax.ShapeDtypeStruct((64, 1024), jnp.float32, sharding=sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        text = jax.jit(step).lower(params, moments, x).compile().as_text()
    # What crosses slices goes through the hosts, and says what it does.
    assert set(re.findall('_xla_megascale_transfer_type="(.*?)"', text)) == {'ALL_REDUCE'}
    assert set(re.findall('_xla_megascale_reduce_operation="(.*?)"', text)) == {'SUM'}
