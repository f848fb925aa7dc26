"""Generators of codes through the jobs: a tokenizer from a run, known tokens by --mask, other sizes."""

import json
import logging

import jax
import numpy as np
import pytest
from configurations import configuration
from PIL import Image

from jaxgen import config, recipe
from jaxgen.jobs import evaluate, sample, train
from jaxgen.program import assemble, check_sources, load_params


def following(folder):
    """The config of a small FlexVAR on the tokenizer of the run in a folder."""
    config = configuration('flexvar_shapes')
    config.networks.tokenizer = {'init_from': str(folder)}
    config.train.update(steps=2, sample_every=0)
    config.metric.prompts = 2
    return config


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """The runs of a tokenizer and of what learned its codes."""
    tokenizer, model = (tmp_path_factory.mktemp(name) for name in ('tokenizer', 'model'))
    config = configuration('vq_shapes')
    config.tokenizer.bottleneck = configuration('flexvar_shapes').tokenizer.bottleneck
    config.train.update(sample_every=0, held_out_every=0)
    train.run(recipe.build(config), tokenizer)
    train.run(recipe.build(following(tokenizer)), model)
    return tokenizer, model


def test_a_tokenizer_told_otherwise_than_in_its_run_is_warned_of(runs, caplog):
    config = following(runs[0])
    with caplog.at_level(logging.WARNING, logger='jaxgen'):
        check_sources(assemble(recipe.build(config)))
        config.tokenizer.bottleneck.scales = (1, 2, 8)  # each is a picture of its own
        config.objective.schedules = ((1, 4, 8),)
        config.tokenizer.bottleneck.restart = 7  # that was how its codes were learned
        check_sources(assemble(recipe.build(config)))
        assert not [words for words in caplog.messages if 'its section' in words]
        config.tokenizer.bottleneck.distance = 'cosine'
        check_sources(assemble(recipe.build(config)))
    (words,) = [words for words in caplog.messages if 'its section' in words]
    assert f'of {runs[0]},' in words and "distance (was not set, is 'cosine')" in words
    assert 'scales' not in words


def test_a_random_network_that_draws_is_warned_of(caplog):
    random = ('networks.model.init_from=', 'networks.tokenizer.init_from=')
    with caplog.at_level(logging.WARNING, logger='jaxgen'):
        train.check(recipe.build(config.load('configs/var_shapes.py:code', random)))
    (words,) = [words for words in caplog.messages if 'is random' in words]
    assert "The network 'model' is random" in words and 'give networks.model.init_from' in words


def test_another_decoder_of_the_same_codes_will_do(runs, tmp_path):
    """Its pictures are others; a tokenizer that encodes otherwise is refused."""
    config = configuration('vq_shapes')
    config.tokenizer.bottleneck = {'name': 'vq', 'codes': 32, 'channels': 4, 'scales': (4, 8)}
    config.train.update(sample_every=0, held_out_every=0)
    parts = {'decoder': {'trainable': ('(decoder|from_latents)/.*',)}, 'whole': {}}
    for name, trains in parts.items():
        config.networks.tokenizer = {'init_from': str(runs[0]), **trains}
        train.run(recipe.build(config), tmp_path / name)
    made = []
    for folder in (runs[0], tmp_path / 'decoder'):
        built = recipe.build(following(folder))
        params, tokenizer = load_params(evaluate.check(built, runs[1]), runs[1])[1], built.tokenizer
        codes = tokenizer.codes(params, built.source('train')[0]['image'][None] / np.float32(127.5) - 1)
        made.append((codes, tokenizer.pixels(params, tokenizer.embed(params, codes))))
    (codes, pixels), (same, others) = made
    jax.tree.map(np.testing.assert_array_equal, codes, same)
    assert np.abs(pixels - others).max() > 1e-3
    with pytest.raises(ValueError, match="was trained with the network 'tokenizer' from .*tokenizer"):
        evaluate.check(recipe.build(following(tmp_path / 'whole')), runs[1])


def test_a_mask_keeps_what_it_does_not_cover(runs, tmp_path):
    """With nothing to paint, all tokens are the picture's own: it comes back as its tokenizer gives it."""
    built = recipe.build(following(runs[0]))
    picture = built.source('train')[0]['image']
    Image.fromarray(picture).save(tmp_path / 'picture.png')
    drawn = {}
    for name, covered in (('none', 0), ('right', 16), ('all', 32)):
        mask = np.zeros((32, 32), np.uint8)
        mask[:, 32 - covered :] = 255
        Image.fromarray(mask).save(tmp_path / 'mask.png')
        files = {'init': str(tmp_path / 'picture.png'), 'mask': str(tmp_path / 'mask.png')}
        record = sample.run(built, runs[1], ['3'], seed=3, **files)
        drawn[name] = np.asarray(Image.open(runs[1] / record['files'][0])).astype(int)
    params = load_params(assemble(built), runs[1])[1]
    tokenizer = built.tokenizer

    @jax.jit
    def given_back(image):
        return tokenizer.decode(params, tokenizer.embed(params, tokenizer.codes(params, image)))[0]

    expected = np.asarray(given_back(picture[None].astype(np.float32) / 127.5 - 1))
    assert np.abs(drawn['none'] - expected).max() <= 1
    changed = {name: np.abs(image - expected).mean((0, 2)) for name, image in drawn.items()}
    assert changed['all'].max() > 1
    # Norms carry some of what is new to all places.
    assert changed['right'][:8].mean() < 0.8 * changed['right'][-8:].mean()


def test_another_size_is_judged(runs):
    built = recipe.build(following(runs[0]))
    record = evaluate.run(built, runs[1], size='48x32', exact=True)
    written = json.loads((runs[1] / 'evaluate.json').read_text())
    assert written['drawn'] == [48, 32] and written['metrics'] == record['metrics']
    assert set(record['metrics']) == {'colour', 'shape', 'count', 'label'}
