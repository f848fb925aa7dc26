"""Features of prompts: read once, kept by all that they are made of; the text encoder leaves in time."""

import dataclasses
import weakref

import jax
import numpy as np
import published
import pytest
from compilations import compilations

from jaxgen import config as configs
from jaxgen import features, generate, recipe
from jaxgen.features import NAME, Features
from jaxgen.program import assemble

CAPTIONS, NEGATIVE = ('a red circle', 'two blue squares'), 'blurry'
NULL = 'conditioner.empty_null=true'  # as published folders have it


@pytest.fixture(scope='module')
def system():
    """A program on one device, with parameters that look at everything."""
    jax.config.update('jax_disable_most_optimizations', True)
    built = recipe.build(configs.load(published.CONFIG, [NULL]))
    yield assemble(built, jax.devices()[:1]), published.random_recipe()[1]
    jax.config.update('jax_disable_most_optimizations', False)


def examples(*captions):
    return [{'caption': caption} for caption in captions]


def counted(params):
    """A `load` of copies, the names that it was asked for, and weak references to what it gave."""
    asked, given = [], []

    def load(names):
        asked.append(tuple(names))
        copies = {name: jax.tree.map(lambda leaf: leaf.copy(), params[name]) for name in names}
        given.append([weakref.ref(leaf) for leaf in jax.tree.leaves(copies)])
        return copies

    return load, asked, given


def alive(references):
    return sum(reference() is not None for reference in references)


def test_features_are_the_encoders_and_read_once(system, tmp_path):
    program, params = system
    load, asked, given = counted(params)
    positive, negative = Features(program, load, 'w', tmp_path)(examples(*CAPTIONS), examples(NEGATIVE) * 2)
    assert asked == [('text',)] and alive(given[0]) == 0
    conditioner = program.recipe.conditioner
    for one, caption in zip((*positive, *negative), (*CAPTIONS, NEGATIVE, NEGATIVE), strict=True):
        for name, read in (('text', caption), ('null', '')):
            arrays = conditioner.arrays([features.BLANK | {'caption': read}])
            text, mask = conditioner.features(params, arrays)
            np.testing.assert_allclose(one[name], np.asarray(text)[mask], rtol=1e-4, atol=1e-5)
    again = Features(program, load, 'w', tmp_path)(examples(*CAPTIONS[::-1]))
    assert len(asked) == 1 and again[1] is None
    np.testing.assert_array_equal(again[0][1]['text'], positive[0]['text'])
    unkept = Features(program, load, '', tmp_path)
    unkept(examples(*CAPTIONS))
    assert len(asked) == 2 and len(list(tmp_path.rglob('*.safetensors'))) == 4


def test_a_disk_that_takes_nothing_is_no_obstacle(system, tmp_path, caplog):
    program, params = system
    (tmp_path / 'file').touch()
    load, asked, _ = counted(params)
    read = Features(program, load, 'w', tmp_path / 'file')
    with caplog.at_level('WARNING', 'jaxgen'):
        assert all(NAME in example for example in read(examples(*CAPTIONS))[0])
    assert caplog.text.count('are not kept') == 1
    read(examples(*CAPTIONS))
    assert asked == [('text',)]


class Read(Exception):
    """The encoder was needed."""


def reads(program, folder, weights='w', caption='See a Cat: http://a.org/b'):
    """Whether a caption has to be read; what would be read is written as if it had been."""

    def load(names):
        raise Read

    reader = Features(program, load, weights, folder)
    try:
        reader(examples(caption))
    except Read:
        conditioner = program.recipe.conditioner
        for each in (caption, ''):
            name = conditioner.cache_key(each)
            reader._known[name] = np.zeros((1, conditioner.text.width), np.float32)
            reader._write(name)
        return True
    return False


OTHERS = (
    'conditioner.length=9',
    'conditioner.clean=false',
    'conditioner.dtype=bfloat16',
    'conditioner.epsilon=1e-5',
    "networks={'text': {'dtype': 'bfloat16'}}",
)


def test_features_are_kept_by_all_that_they_are_made_of(system, tmp_path):
    program, _ = system
    assert reads(program, tmp_path) and not reads(program, tmp_path)
    assert not reads(program, tmp_path, caption='see a CAT: ')  # the same when it is cleaned
    assert reads(program, tmp_path, caption='see two cats')
    assert reads(program, tmp_path, weights='v') and not reads(program, tmp_path, weights='v')
    for change in OTHERS:
        other = assemble(recipe.build(configs.load(published.CONFIG, [NULL, change])), jax.devices()[:1])
        assert reads(other, tmp_path) and not reads(other, tmp_path), change
    assert not reads(program, tmp_path)


@pytest.mark.parametrize('together', [False, True])
def test_what_has_no_room_is_let_go_first(system, together, monkeypatch):
    program, params = system
    load, asked, given = counted(params)
    monkeypatch.setattr(generate, 'fits_together', lambda program: together)
    monkeypatch.setattr(generate, 'make_generator', lambda *_, **__: lambda params, *_, **__: sorted(params))
    left = []

    def observed(names):
        left.append(sum(map(alive, given)))
        return load(names)

    draw = generate.drawing(program, observed)
    for caption in (*CAPTIONS, CAPTIONS[0]):
        assert draw([caption]) == ['model', 'tokenizer']
    rest = tuple(name for name in program.recipe.networks if name != 'text')
    if together:
        assert asked == [('text',), rest] and all(map(alive, given))
    else:
        assert asked == [('text',), rest] * 2
        assert left == [0, 0, 0, 0]  # nothing was there when more was loaded


def test_another_prompt_compiles_nothing(system, caplog):
    program, params = system
    draw = generate.drawing(program, counted(params)[0])
    with compilations(caplog) as so_far:
        draw(CAPTIONS[:1], seed=3)
        first = so_far()
        assert all(any(name in message for message in first) for name in ('draw', 'features'))
        drawn = draw(['a cat'], seed=4, negative=NEGATIVE, knobs={'steps': 2, 'guidance': 2})
        assert drawn.std() > 1 and so_far() == first
        draw(['a dog'], seed=5)  # one to read, where two were
        assert so_far() == first


def test_a_frozen_reader_alone_reads_ahead(system):
    program, _ = system
    assert features.ahead(program.recipe)
    phase = dataclasses.replace(program.recipe.objective.phases[0], trains=('model', 'text'))
    objective = dataclasses.replace(program.recipe.objective, phases=(phase,))
    assert not features.ahead(dataclasses.replace(program.recipe, objective=objective))
