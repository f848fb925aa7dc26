"""Pairs: drawn by a run, kept as an artifact, read back as a source, and trained on."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from nouns import tiny

from jaxgen import artifact
from jaxgen import keys as random
from jaxgen.conditioning import labels as labelled
from jaxgen.data import pairs as stored
from jaxgen.data.pipeline import batches
from jaxgen.generate import make_generator
from jaxgen.jobs import search, train
from jaxgen.program import assemble, load_params
from jaxgen.recipe import blank_example, build
from jaxgen.search import pairs

FLOW = {
    'model': {'name': 'dit', 'hidden': 16, 'depth': 1, 'heads': 1, 'patch': 4},
    'path': {'name': 'linear'},
    'prediction': {'output': 'velocity'},
    'sampler': {'name': 'diffusion', 'solver': {'name': 'euler'}, 'steps': 2, 'guidance': 2.0},
    'search': {'name': 'pairs', 'count': 20, 'seed': 3},
    'train': {'steps': 2, 'save_every': 2},
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A trained tiny flow's recipe, and its workdir with 20 pairs in three parts."""
    workdir = tmp_path_factory.mktemp('flow')
    recipe = tiny.build(**FLOW)
    train.run(recipe, workdir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, 'PART', 8)
        search.run(recipe, workdir)
    return recipe, workdir


def arrays_of(workdir):
    return artifact.load(workdir / 'pairs', 'pairs', {}).arrays


def second(workdir, **changes):
    """The recipe that goes on from the run with its pairs."""
    data = {'name': 'pairs', 'path': str(workdir / 'pairs'), 'resolution': 8, 'holdout': 0.2}
    sections = {
        **tiny.SECTIONS,
        **{name: section for name, section in FLOW.items() if name != 'search'},
        'data': data,
        'train': {**tiny.SECTIONS['train'], 'steps': 2},
        'objective': {'name': 'reflow'},
        'networks': {'model': {'init_from': str(workdir)}},
        'sampler': {**FLOW['sampler'], 'guidance': 1.0},
    }
    return {**sections, **changes}


def test_pair_is_a_noise_and_what_the_sampler_makes_of_it(run):
    recipe, workdir = run
    arrays, program = arrays_of(workdir), assemble(recipe)
    assert arrays['noise'].shape == arrays['latents'].shape == (20, 8, 8, 3)
    assert [len(part) for part in arrays['noise'].parts] == [8, 8, 4]
    _, params = load_params(program, workdir)
    draw = make_generator(recipe, program.mesh, 8)
    for row in (0, 13):
        label = int(arrays['label'][row])
        image = draw(params, [{'label': label}], [3 + row], recipe.sampler.knobs())[0]
        latents = arrays['latents'][row]
        np.testing.assert_array_equal(recipe.tokenizer.decode({}, latents), image)
        key = random.fold(jax.random.key(3 + row), 'sample')
        np.testing.assert_array_equal(arrays['noise'][row], recipe.sampler.noise(key[None])[0])
    labels = [int(label) for label in arrays['label']]
    assert len(set(labels)) > 1 and labels != sorted(labels)


def test_stopped_search_ends_with_the_same_pairs(run, tmp_path, monkeypatch):
    recipe, workdir = run
    shutil.copytree(workdir, tmp_path / 'stopped')
    folder = tmp_path / 'stopped' / 'pairs'
    header = json.loads((folder / artifact.HEADER).read_text())
    (folder / artifact.DRAFT).write_text(json.dumps({**header, 'parts': [8]}))
    (folder / artifact.HEADER).unlink()
    for file in folder.glob('*-0000[12].npy'):
        file.write_bytes(b'cut off')
    monkeypatch.setattr(pairs, 'PART', 8)
    search.run(recipe, tmp_path / 'stopped')
    kept, whole = arrays_of(tmp_path / 'stopped'), arrays_of(workdir)
    for name in ('noise', 'latents', 'label'):
        np.testing.assert_array_equal([*kept[name]], [*whole[name]])


def test_complete_search_draws_nothing_and_other_settings_are_refused(run, monkeypatch):
    recipe, workdir = run
    monkeypatch.setattr(pairs, 'make_generator', None)
    search.run(recipe, workdir)
    with pytest.raises(ValueError, match='notes.knobs.steps is 2.0 there and 3.0 here'):
        search.run(recipe, workdir, knobs='steps=3')


def test_source_reads_the_pairs_and_holds_some_out(run):
    _, workdir = run
    arrays, path = arrays_of(workdir), str(workdir / 'pairs')
    kept, held_out = (stored.build(path, split, 8, holdout=0.2) for split in ('train', 'test'))
    assert (len(kept), len(held_out)) == (16, 4)
    assert kept.description.latent == (8, 8, 3) and kept.description.classes == 4
    example = held_out[1]
    assert set(example) == {'noise', 'latents', 'label'} and example['label'] == arrays['label'][17]
    np.testing.assert_array_equal(example['noise'], arrays['noise'][17])
    labels = labelled.build(4).arrays
    batch = next(batches(kept, labels, seed=0, batch=8, threads=0))
    assert set(batch) == {'noise', 'latents', 'label'}
    where = {arrays['noise'][row].tobytes(): row for row in range(16)}
    for noise, latents, label in zip(batch['noise'], batch['latents'], batch['label']):
        row = where[noise.tobytes()]
        assert label == arrays['label'][row]
        np.testing.assert_array_equal(latents, arrays['latents'][row])


def test_reflow_starts_from_the_first_flow_and_trains(run, tmp_path):
    recipe, workdir = run
    again = build(second(workdir))
    _, first = load_params(assemble(recipe), workdir)
    program = assemble(again)
    jax.tree.map(np.testing.assert_array_equal, program.fresh().params['model'], first['model'])
    assert set(program.abstract_batch(blank_example(8))) == {'noise', 'latents', 'label'}
    record = train.run(again, tmp_path)
    assert record['step'] == 2 and np.isfinite(record['metrics']['denoise/error'])


def other_tokenizer(workdir):
    return second(workdir, tokenizer={'name': 'pixels', 'fold': 2})


@pytest.mark.parametrize(
    'sections, message',
    [
        (lambda workdir: second(workdir, objective={'name': 'diffusion'}), "reads 'image' of every example"),
        (lambda workdir: second(workdir, data=tiny.SECTIONS['data']), "reads 'noise' of every example"),
        (other_tokenizer, r'latents of shape \(8, 8, 3\), and the tokenizer makes \(4, 4, 12\)'),
    ],
)
def test_parts_that_do_not_fit_the_pairs_are_refused(run, sections, message):
    with pytest.raises(ValueError, match=message):
        build(sections(run[1])).source('train')


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'resolution': 16}, 'resolution is 8 there and 16 here'),
        ({'path': 'nowhere', 'resolution': 8}, 'there is no artifact in nowhere'),
        ({'resolution': 8, 'split': 'test', 'holdout': 0.0}, "none of them for 'test'"),
    ],
)
def test_pairs_that_are_not_there_are_refused(run, settings, message):
    with pytest.raises(ValueError, match=message):
        stored.build(**{'path': str(run[1] / 'pairs'), **settings})


def test_pictures_are_not_mirrored_where_there_are_none(run):
    source = stored.build(str(run[1] / 'pairs'), 'train', 8)
    with pytest.raises(ValueError, match='set train.flip=False'):
        batches(source, seed=0, batch=4, flip=True)


def test_captions_are_kept_and_one_too_long_refused(tmp_path):
    captions = ['a small circle', 'ein großer Kreis']
    examples = [{'caption': caption} for caption in captions]
    search = pairs.Pairs(count=2, seed=0, caption_bytes=17)
    found_for = {'resolution': 2, 'latent': (2,), 'classes': None, 'captions': True, 'label_names': None}
    part = {'noise': np.ones((2, 2)), 'latents': np.ones((2, 2)), **search._conditions(examples)}
    artifact.write(tmp_path, 'pairs', found_for, lambda first: [part], {})
    source = stored.build(str(tmp_path), resolution=2, holdout=0.0)
    assert [source[row]['caption'] for row in range(2)] == captions
    with pytest.raises(ValueError, match='caption_bytes is 16, and a caption has 17'):
        dataclasses.replace(search, caption_bytes=16)._conditions(examples)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'sampler': {**FLOW['sampler'], 'solver': {'name': 'sde'}}}, 'adds fresh noise'),
        ({'search': {'name': 'pairs', 'seed': 2**32 - 1, 'count': 2}}, 'sum may be up to'),
    ],
)
def test_pairs_that_no_noise_leads_to_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.build(**{**FLOW, **changes})


def test_search_says_what_it_misses(run):
    recipe, workdir = run
    with pytest.raises(ValueError, match='--config.search.name=pairs'):
        search.run(dataclasses.replace(recipe, search=None), workdir)
