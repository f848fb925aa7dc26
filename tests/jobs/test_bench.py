"""The bench job measures what a recipe has, leaves a record of it, and refuses what it could not time."""

import functools
import json

import jax
import pytest
from configurations import configuration

from jaxgen import recipe
from jaxgen.estimate import chips
from jaxgen.jobs import bench
from jaxgen.program import assemble

RATES = {'images_per_second', 'tokens_per_second', 'flops_per_second'}


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Two devices, hardly any reading, and programs compiled without optimisation."""
    monkeypatch.setattr(bench, 'assemble', functools.partial(assemble, devices=jax.devices()[:2]))
    monkeypatch.setattr(bench, 'READING', 0.01)
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def built(**changes):
    config = configuration('sit_folder').to_dict()
    for section, keys in changes.items():
        config[section] = keys if 'name' in keys else {**config[section], **keys}
    return recipe.build(config)


def test_all_is_timed(tmp_path, capsys, monkeypatch):
    cached = jax.config.jax_enable_compilation_cache
    monkeypatch.setitem(chips.KINDS, 'cpu', 'v5e')
    one = built(model={'remat': 'full'})
    record = bench.run(one, str(tmp_path), steps=2, knobs='steps=3')
    assert json.loads((tmp_path / 'bench.json').read_text()) == json.loads(json.dumps(record))
    for part, unit in ((record['train']['denoise'], 'step'), (record['sample'], 'batch')):
        times = part[f'{unit}_seconds']
        assert 0 < times['least'] <= times['median'] <= times['most']
        assert part['compile_seconds'] > 0 and part['lower_seconds'] > 0 and part[f'first_{unit}_seconds'] > 0
        assert RATES <= set(part)
        assert part['images_per_second'] == pytest.approx(part['images'] / times['median'])
        assert part['flops_per_second'] == pytest.approx(part['flops'] / times['median'])
        assert part['mfu'] == pytest.approx(part['flops_per_second'] / 2 / chips.CHIPS['v5e'].peak)
    assert record['sample']['knobs']['steps'] == 3
    assert all(rate > 0 for rate in record['data']['examples_per_second_by_threads'].values())
    printed = capsys.readouterr().out
    assert 'denoise: step of' in printed and 'sample: batch of' in printed and '0 threads' in printed
    assert jax.config.jax_enable_compilation_cache == cached


def test_operations_are_those_of_the_network_without_remat():
    counts = []
    for remat in ('none', 'full'):
        plain = bench.assemble(bench.recipes.without_recomputing(built(model={'remat': remat})))
        counts.append(bench.cost.flops(plain.steps['denoise'], *plain.abstract_arguments()))
    assert counts[0] == counts[1]


def test_sampling_counts_every_step(monkeypatch):
    """Three steps are three times what one is, but for what happens once."""
    program = bench.assemble(built())
    state = program.fresh()
    monkeypatch.setattr(bench, '_compiled', lambda *given: (lambda *arguments: 0, {}))
    one, three = (bench._sample(program, state, 1, {'steps': steps})['flops'] for steps in (1, 3))
    assert 2.5 * one < three <= 3 * one


def test_missing_data_are_told(tmp_path):
    data = {'name': 'folder', 'path': str(tmp_path / 'nowhere'), 'resolution': 16}
    one = built(data=data, conditioner={'classes': 5})
    assert 'nowhere' in bench._data(bench.assemble(one))['missing']


@pytest.mark.parametrize(('options', 'says'), [({'steps': 0}, 'steps=0'), ({'knobs': 'stops=3'}, 'stops')])
def test_refusals(options, says):
    with pytest.raises(ValueError, match=says):
        bench.check(built(), **options)
