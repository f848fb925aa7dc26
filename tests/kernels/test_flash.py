"""The flash kernels against their reference: awkward shapes, masks, gradients; compiled for TPUs."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.seeded import normal, relative_error
from jax.ad_checkpoint import checkpoint_name

from jaxgen.estimate import topology
from jaxgen.estimate.bundles import FLASH
from jaxgen.kernels.flash import flash_attention, key_blocks, reference
from jaxgen.layers.attention import attention, best
from jaxgen.layers.segment import SAVED_NAMES
from jaxgen.uncached import uncached

SLICES = {'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2'}


def arrays(batch, queries, keys, heads, width, dtype):
    shapes = {'q': (batch, queries, heads, width), 'k': (batch, keys, heads, width)}
    q, k = (normal(name, shape) for name, shape in shapes.items())
    return tuple(jnp.asarray(a, dtype) for a in (q, k, normal('v', k.shape)))


def evaluated(attend, given, mask):
    """The attention, the log of its sums, and the gradients of both."""
    y, log_sums = jax.eval_shape(reference, *given)
    weights, others = normal('weights', y.shape), normal('others', log_sums.shape)

    def loss(*given):
        y, log_sums = attend(*given, mask)
        return jnp.sum(y * weights) + jnp.sum(log_sums * others), (y, log_sums)

    gradients, outputs = jax.grad(loss, (0, 1, 2), has_aux=True)(*given)
    return *outputs, *gradients


@pytest.mark.parametrize(
    'shape, seen, dtype, tolerance',
    [
        ((3, 130, 120, 2, 72), (120, 70, 0), jnp.float32, 1e-5),  # one sees nothing
        ((1, 128, 1300, 1, 72), None, jnp.float32, 1e-5),  # a loop over the keys
        ((1, 300, 520, 1, 64), (7,), jnp.bfloat16, 2e-2),
        ((1, 256, 256, 2, 128), None, jnp.bfloat16, 2e-2),
    ],
    ids=str,
)
def test_equals_the_reference(shape, seen, dtype, tolerance):
    given = arrays(*shape, dtype)
    mask = None if seen is None else np.arange(shape[2]) < np.array(seen)[:, None]
    ours = evaluated(functools.partial(flash_attention, interpret=True), given, mask)
    for name, one, other in zip(('y', 'log sums', 'dq', 'dk', 'dv'), ours, evaluated(reference, given, mask)):
        assert np.isfinite(one).all() and one.dtype == other.dtype, name
        assert relative_error(one.astype(jnp.float32), other.astype(jnp.float32)) < tolerance, name


def test_blocks_of_keys_hold_all_with_little_padding():
    for keys in (1, 120, 128, 300, 512, 513, 1024, 1300, 4080, 4096, 16384):
        block, count = key_blocks(keys)
        assert block % 128 == 0 and (count == 1 or count % 2 == 0)
        assert keys <= block * count < max(keys + 512, 1.2 * keys)


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')
@pytest.mark.parametrize(
    'chip', ['v5e', *(pytest.param(chip, marks=pytest.mark.slow) for chip in ('v5p', 'v6e'))]
)
def test_compiles_for_tpus_as_the_projections_lie(chip):
    """Chosen by itself, without a copy between projections and kernel; the forward does not run again."""
    devices = topology.devices(SLICES[chip])
    mesh = jax.sharding.Mesh(
        np.array(devices[:1]).reshape(1, 1, 1, 1), ('data', 'fsdp', 'tensor', 'sequence')
    )
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x, kernel = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)
        for shape in ((2, 256, 1152), (3, 1152, 16, 72))
    )
    mask = jax.ShapeDtypeStruct((2, 256), bool, sharding=place)

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES))
    def attend(kernel, x, mask):
        q, k, v = (checkpoint_name(jnp.einsum('bld,dhk->blhk', x, part), 'query') for part in kernel)
        assert best(q, k, mask, False) == 'flash'
        return attention(q, k, v, mask)

    def loss(kernel, x, mask):
        return jnp.sum(attend(kernel, x, mask).astype(jnp.float32) ** 2)

    with uncached(), jax.set_mesh(mesh):
        program = jax.jit(jax.grad(loss)).lower(kernel, x, mask).compile().as_text()
    calls = [line for line in program.splitlines() if 'tpu_custom_call' in line]
    names = [FLASH.search(line).group() for line in calls]
    shape = 'b2_h16_q256_k256_w72_masked'
    assert sorted(names) == [f'flash_backward_{shape}', f'flash_forward_{shape}']
    assert not [line for line in program.splitlines() if re.search(r' copy\(', line) and '16,72' in line]
