"""Every config's `:tiny` trains, stops, goes on, samples, plans and, where it has a metric, evaluates."""

import json
import shutil

import jax
import numpy as np
import pytest
from configurations import NAMES, configuration
from PIL import Image

from jaxgen import recipe
from jaxgen.jobs import evaluate, plan, sample, search, train
from jaxgen.program import assemble

PICTURES = 3


def on_two(recipe, devices=None):
    return assemble(recipe, devices or jax.devices()[:2])


@pytest.fixture(autouse=True)
def light(monkeypatch, tmp_path_factory):
    """Two devices, and programs compiled without optimisation: compiling is most of the time here."""
    monkeypatch.setenv('JAXGEN_DATA_DIR', str(tmp_path_factory.getbasetemp() / 'data'))
    for job in (evaluate, plan, sample, search, train):
        monkeypatch.setattr(job, 'assemble', on_two)
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def read(path):
    return json.loads(path.read_text())


def phases(built):
    return [phase.name for phase in built.objective.phases]


def asked(built, **knobs):
    """Those of the knobs that the sampler has, and as --knobs says them."""
    knobs = {name: value for name, value in knobs.items() if name in built.sampler.knobs()}
    return knobs, ','.join(f'{name}={value}' for name, value in knobs.items())


def prompt_of(built, workdir):
    """An example as a user would ask for it: a class number, a caption, or a picture's file."""
    example = built.source('train')[0]
    if not hasattr(built.conditioner, 'shown'):
        return built.conditioner.describe(example).removeprefix('class ')
    Image.fromarray(example['image']).save(workdir / 'asked.png')
    return str(workdir / 'asked.png')


def lines(workdir):
    """The run's metrics without what a clock says."""
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ('time', 'images_per_second')} for record in records]


def check_training(built, workdir):
    record = train.run(built, workdir)
    written = read(workdir / 'train.json')
    assert written['step'] == record['step'] == 3
    assert written['config']['train']['steps'] == 3
    assert written['fingerprints'] == record['fingerprints']
    assert {'params', 'optimizer', 'ema', 'state'} <= set(record['fingerprints'])
    assert all(len(bytes.fromhex(digest)) == 32 for digest in record['fingerprints'].values())
    measured = {f'{phase}/{name}' for phase in phases(built) for name in ('loss', 'gradient_norm')}
    assert measured | {'held_out/loss'} <= set(record['metrics'])
    assert all(np.isfinite(value) for value in record['metrics'].values())
    first = f'{phases(built)[0]}/loss'
    assert [line['step'] for line in lines(workdir) if first in line] == [1, 2, 3]
    if built.sampler is not None:
        with Image.open(workdir / 'pictures' / '0000003.png') as picture:
            assert picture.format == 'PNG'
    return record


def check_complete_run_is_left_alone(built, workdir, record):
    before = (workdir / 'train.json').read_bytes(), (workdir / 'metrics.jsonl').read_bytes()
    again = train.run(built, workdir)
    assert again['fingerprints'] == record['fingerprints'] and again['metrics'] == record['metrics']
    assert before == ((workdir / 'train.json').read_bytes(), (workdir / 'metrics.jsonl').read_bytes())


def check_resuming_changes_nothing(built, workdir, record, interrupted):
    """As if the run had been killed after its checkpoint of step 2, in the midst of the third step."""
    shutil.copytree(workdir, interrupted)
    shutil.rmtree(interrupted / 'checkpoints' / '3')
    (interrupted / 'train.json').unlink()
    resumed = train.run(built, interrupted)
    assert resumed['fingerprints'] == record['fingerprints']
    assert lines(interrupted) == lines(workdir)


def check_sampling(built, workdir):
    prompt = prompt_of(built, workdir)
    wanted, knobs = asked(built, steps=1, guidance=2.5)
    record = sample.run(built, workdir, prompt=[prompt], seed=5, count=PICTURES, knobs=knobs)
    written, resolution = read(workdir / 'sample.json'), built.config['data']['resolution']
    assert written['checkpoint'] == 3 and written['seeds'] == [5, 6, 7]
    assert wanted.items() <= written['knobs'].items() and set(written['knobs']) == set(built.sampler.knobs())
    assert written['prompts'] == record['prompts'] and prompt in written['prompts'][0]
    assert len(written['files']) == PICTURES
    images = []
    for file in written['files']:
        with Image.open(workdir / file) as picture:
            assert picture.format == 'PNG' and picture.size == (resolution, resolution)
            images.append(np.asarray(picture))
    assert (images[0] != images[1]).any() == bool(written['knobs'])  # what has no knobs draws nothing anew
    assert (workdir / written['grid']).exists()


def check_planning(built, workdir):
    plan.run(built, workdir, compile='none')
    written = read(workdir / 'plan.json')
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()}
    assert written['parameters'] == counts
    assert written['parameters_total'] == sum(counts.values())
    assert written['devices'] == 2 and written['bytes_per_device']['parameters'] > 0
    if hasattr(built.sampler, 'held'):
        kept = jax.tree.leaves(built.sampler.held(built.train.sample_batch))
        size = sum(leaf.dtype.itemsize * leaf.size for leaf in kept)
        assert written['bytes_per_device']['sampling cache'] == size // 2 > 0
    for phase in built.objective.phases:
        trained = sum(counts[name] for name in phase.trains)
        assert written['phases'][phase.name]['flops_per_step'] > 3 * 2 * trained


def check_evaluating(built, workdir):
    record = evaluate.run(built, workdir, knobs=asked(built, steps=1)[1])
    written = read(workdir / 'evaluate.json')
    assert written['metrics'] == record['metrics'] and written['checkpoint'] == 3
    assert all(0 <= value <= (100 if name == 'psnr' else 1) for name, value in written['metrics'].items())
    assert written['images'] == len(built.metric.examples())
    assert (workdir / written['grid']).exists()


def prepared(config, folder):
    """The config; one that goes on from a first run gets a tiny one to go on from, and its pairs."""
    if config.data.name != 'pairs':
        return config
    first = configuration('quickstart')
    first.search = {'name': 'pairs', 'count': 32}
    built = recipe.build(first)
    train.run(built, folder)
    search.run(built, folder, knobs='steps=1')
    config.data.path = str(folder / 'pairs')
    for network in config.networks.values():
        network.init_from = str(folder)
    return config


@pytest.mark.parametrize('name', NAMES)
def test_tiny(name, tmp_path):
    built, workdir = recipe.build(prepared(configuration(name), tmp_path / 'first')), tmp_path / 'run'
    record = check_training(built, workdir)
    check_complete_run_is_left_alone(built, workdir, record)
    check_resuming_changes_nothing(built, workdir, record, tmp_path / 'interrupted')
    if built.sampler is not None:
        check_sampling(built, workdir)
    check_planning(built, workdir)
    if built.metric is not None:
        check_evaluating(built, workdir)
