"""`--mode=plan` for TPU slices that are not there, without the compiler and with it."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest
from configurations import configuration

from jaxgen import recipe
from jaxgen.estimate import topology
from jaxgen.jobs import plan
from jaxgen.uncached import uncached

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')


def built(**mesh):
    config = configuration('dit_imagenet')
    config.mesh = mesh or {'fsdp': -1}
    return recipe.build(config)


def test_without_the_compiler_it_says_what_it_can(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(topology, 'version', lambda: None)
    made = built()
    plan.check(made, topology='v5e:2x4')
    record = plan.run(made, tmp_path, topology='v5e:2x4')
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / 'plan.json').read_text())['topology'] == 'v5e:2x4'
    assert (record['devices'], record['device_kind'], record['libtpu']) == (8, 'TPU v5 lite', None)
    assert record['phases']['denoise']['flops_per_step'] > 3 * 2 * record['parameters']['model']
    assert record['sample']['flops_per_step'] > 0 and 'estimate' not in record['phases']['denoise']
    assert 'pip install' in printed and 'v5e:2x4' in printed
    whole = plan.run(made, tmp_path, topology='v5e:1x1')
    assert record['bytes_per_device']['optimizer'] < whole['bytes_per_device']['optimizer']


def test_what_cannot_be_planned_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="nearest is 'v5e:2x4'"):
        plan.check(built(), topology='v5e:2*4')
    monkeypatch.setattr(topology, 'version', lambda: None)
    with pytest.raises(ValueError, match='mesh'):
        plan.check(built(fsdp=3), topology='v5e:2x4')
    with pytest.raises(ValueError, match='--topology'):
        plan.check(built(), export=str(tmp_path), topology='v5e:2x4')


def test_operations_are_those_of_a_network_that_computes_everything_once(tmp_path):
    """The same for every way to save memory."""
    config = configuration('dit_imagenet')
    counts = set()
    for remat in ('none', 'full'):
        config.model.remat = remat
        record = plan.run(recipe.build(config), tmp_path, compile='none')
        counts.add(record['phases']['denoise']['flops_per_step'])
    assert len(counts) == 1


def test_a_program_that_does_not_fit_says_what_to_change():
    error = jax.errors.JaxRuntimeError(
        'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. '
        'Used 30.50G of 15.75G hbm. Exceeded hbm capacity by 14.75G.'
    )
    told = plan._refused(error)
    assert told == {'needs': 30.5 * 2**30, 'hbm': 15.75 * 2**30, 'fits': False}
    rows = dict(plan._rows({'flops_per_step': 1, **told, 'change': ['--config.model.remat=full']}))
    assert rows['does not fit'] == 'needs 32.7 of 16.9 GB a chip'
    assert rows['to make it fit'] == '--config.model.remat=full'
    with pytest.raises(jax.errors.JaxRuntimeError, match='something else'):
        plan._refused(jax.errors.JaxRuntimeError('something else'))


@needs_libtpu
def test_the_compiler_says_how_much_is_too_much():
    place = jax.sharding.SingleDeviceSharding(topology.devices('v5e:1x1')[0])
    large = jax.ShapeDtypeStruct((2**17, 2**17), jnp.float32, sharding=place)
    with uncached(), pytest.raises(jax.errors.JaxRuntimeError) as refused:
        jax.jit(lambda a: a @ a.T).lower(large).compile()
    assert plan._refused(refused.value)['needs'] > 2 * plan._refused(refused.value)['hbm']


@needs_libtpu
@pytest.mark.slow
def test_a_slice_that_is_not_there(tmp_path, capsys):
    record = plan.run(built(), tmp_path, topology='v5e:2x4')
    for costs in (record['phases']['denoise'], record['sample']):
        found = costs['estimate']
        shares = sum(found[name] for name in ('matmul', 'vector', 'memory', 'network'))
        assert found['seconds'] == pytest.approx(shares) and found['seconds'] > 0
        assert found['fits'] and 0 < found['mfu'] < 1 and found['collectives']
        assert costs['compile_seconds'] > 0
    assert record['libtpu'] == topology.version()
    printed = capsys.readouterr().out
    assert 'estimated MFU' in printed and 'seconds an image' in printed
