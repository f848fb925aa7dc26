"""What the estimator makes of programs of the real compiler (needs libtpu, the extra `tpu`)."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rows
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen import estimate
from jaxgen.estimate import topology
from jaxgen.uncached import uncached

pytestmark = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')


@pytest.mark.parametrize('where', ['v4:2x2x1', 'v5e:1x1', 'v5p:2x2x1', 'v6e:1x1'])
def test_a_large_matmul_meets_the_peak(where):
    found = rows.matmul(where)
    assert 0.95 <= found.mfu <= 1.0
    assert found.fits and not found.collectives


def test_a_scan_over_sharded_layers():
    """Layers gathered one by one in a loop: each counts, with the bytes of a whole kernel."""
    mesh = Mesh(np.array(topology.devices('v5e:2x4')), ('data',))

    def on(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    def layers(x, kernels):
        whole = NamedSharding(mesh, PartitionSpec())
        body = lambda x, w: (jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)), None)  # noqa: E731
        return jax.lax.scan(body, x, kernels)[0]

    with uncached():
        program = jax.jit(layers).lower(on((8 * 4096, 1024), 'data'), on((6, 1024, 1024), None, None, 'data'))
        found = estimate.estimate(program.compile(), 'v5e', 2 * 6 * 4096 * 1024**2)
    gathered = sum(row.count * row.bytes for row in found.collectives if row.kind == 'all-gather')
    assert gathered == 6 * 1024 * 1024 * 2
    assert 0.4 < found.mfu < 1 and not found.open_loops and not found.uncounted
    assert found.seconds == pytest.approx(found.matmul + found.vector + found.memory + found.network)
    assert 'estimated MFU' in found.table() and found.as_dict()['fits']


@pytest.mark.slow
@pytest.mark.parametrize('form, page', [(('separate', 'BLHK', 'float32'), 0.76)])
def test_an_attention_half_is_as_measured(form, page):
    assert rows.measured(*rows.attention_half(*form)).mfu == pytest.approx(page, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    'activation, page', [(row[1], row[2] / 100) for row in rows.ACTIVATIONS if row[0] != 'erf GELU']
)
def test_an_mlp_half_is_as_measured(activation, page):
    assert rows.measured(*rows.mlp_half(activation)).mfu == pytest.approx(page, abs=0.03)
