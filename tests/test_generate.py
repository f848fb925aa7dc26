"""A picture is its prompt and its seed: neither its batch, nor its neighbours, nor a new compilation."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configurations import configuration

from jaxgen import config, recipe
from jaxgen.generate import abstract_call, drawn_size, kept, make_generator
from jaxgen.program import assemble

PROMPTS = ('a red circle', 'a blue square', 'two green triangles', 'a small yellow circle')


@pytest.fixture(scope='module')
def system():
    """The quick start with parameters that look at everything, and its generator of batches of 4."""
    jax.config.update('jax_disable_most_optimizations', True)
    built = recipe.build(configuration('quickstart'))
    program = assemble(built, jax.devices()[:2])
    rng = np.random.RandomState(0)
    # Fresh networks put out zero; these see their conditions.
    params = jax.tree.map(
        lambda leaf: np.float32(leaf + 0.2 * rng.standard_normal(leaf.shape)),
        jax.device_get(jax.jit(built.init)(jax.random.key(0))),
    )
    yield built, params, make_generator(built, program.mesh, 4), make_generator(built, program.mesh, 2)
    jax.config.update('jax_disable_most_optimizations', False)


def examples(built, prompts=PROMPTS):
    return [built.conditioner.example(prompt) for prompt in prompts]


@pytest.fixture(scope='module')
def drawn(system):
    built, params, generate, _ = system
    return generate(params, examples(built), [5, 6, 7, 8], built.sampler.knobs())


def assert_close(ours, theirs):
    """Equal but for rounding, which may differ with the shape of a batch."""
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_pictures_are_pictures(drawn):
    assert drawn.shape == (4, 32, 32, 3) and drawn.dtype == np.uint8
    assert all(image.std() > 10 for image in drawn)


def test_order_and_batch_change_nothing(system, drawn):
    built, params, generate, by_two = system
    given, knobs = examples(built), built.sampler.knobs()
    assert_close(generate(params, given[::-1], [8, 7, 6, 5], knobs), drawn[::-1])
    assert_close(by_two(params, given[1:], [6, 7, 8], knobs), drawn[1:])  # the last batch is filled up
    assert_close(generate(params, [*given, given[2]], [5, 6, 7, 8, 7], knobs), drawn[[0, 1, 2, 3, 2]])


def test_seed_and_prompt_matter(system, drawn):
    built, params, generate, _ = system
    other_seed = generate(params, examples(built), [5, 6, 7, 9], built.sampler.knobs())
    assert_close(other_seed[:3], drawn[:3])
    assert np.abs(other_seed[3].astype(int) - drawn[3]).mean() > 5
    other_prompt = generate(
        params, examples(built, (*PROMPTS[:3], 'a white square')), [5, 6, 7, 8], built.sampler.knobs()
    )
    assert_close(other_prompt[:3], drawn[:3])
    assert np.abs(other_prompt[3].astype(int) - drawn[3]).mean() > 0.5


@pytest.mark.parametrize(
    'changes',
    [
        {'steps': 3},
        {'guidance': 1.0},
        {'guidance': 7.5},
        {'low': 0.3, 'high': 0.8},
        {'rescale': 0.7},
        {'shift': 1.0},
    ],
    ids=str,
)
def test_knobs_matter_and_compile_nothing(system, drawn, changes, caplog):
    built, params, generate, _ = system
    knobs = built.sampler.knobs(**changes)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        changed = generate(params, examples(built), [5, 6, 7, 8], knobs)
    assert not [record for record in caplog.records if record.getMessage().startswith('Compiling')]
    assert np.abs(changed.astype(int) - drawn).mean() > 0.2


def test_negatives_steer_and_compile_nothing(system, drawn, caplog):
    built, params, generate, _ = system
    negatives = examples(built, ['a red circle'] * 4)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        steered = generate(params, examples(built), [5, 6, 7, 8], built.sampler.knobs(), negatives)
    assert not [record for record in caplog.records if record.getMessage().startswith('Compiling')]
    assert np.abs(steered.astype(int) - drawn).mean() > 0.2
    # Steering away from the prompt itself leaves the prompt alone: guidance has nothing to follow.
    unguided = generate(params, examples(built), [5, 6, 7, 8], built.sampler.knobs(guidance=1.0))
    assert_close(steered[:1], unguided[:1])


def test_compilations_would_be_seen(system, caplog):
    built, params, _, _ = system
    generate = make_generator(built, assemble(built, jax.devices()[:1]).mesh, 1)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        generate(params, examples(built)[:1], [5], built.sampler.knobs())
    compiled = [record.getMessage() for record in caplog.records]
    assert any(message.startswith('Compiling') and 'draw' in message for message in compiled)


@pytest.mark.parametrize('precision, off', [('bfloat16', 4), ('int8', 12)])
def test_a_model_kept_in_less_draws_nearly_the_same(system, drawn, precision, off):
    built, params, generate, _ = system
    less = kept(built, {**params, 'model': jax.tree.map(jnp.asarray, params['model'])}, precision)
    images = generate(less, examples(built), [5, 6, 7, 8], built.sampler.knobs())
    assert 0 < np.abs(images.astype(int) - drawn.astype(int)).mean() < off
    # What is planned is what is called.
    abstract = abstract_call(assemble(built, jax.devices()[:2]), 4, precision=precision)[0]['model']
    assert jax.tree.map(lambda a: (a.shape, a.dtype), less['model']) == jax.tree.map(
        lambda a: (a.shape, a.dtype), abstract
    )


def test_every_network_that_draws_is_kept_in_less():
    variants = config.load('configs/var_shapes.py:code')
    planned = abstract_call(assemble(recipe.build(variants)), 4, precision='bfloat16')[0]
    assert {name: {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} for name, tree in planned.items()} == {
        'model': {'bfloat16'},
        'refiner': {'bfloat16'},
        'tokenizer': {'float32'},
    }


def test_a_size_that_the_sampler_does_not_draw_is_refused():
    """Before a training and any compilation: networks of codes are built for latents of one shape alone."""
    built = recipe.build(configuration('var_imagenet'))
    with pytest.raises(ValueError, match='48 x 32 pixels cannot be drawn exactly: this network draws'):
        drawn_size(built, (48, 32), exact=True)
    large = dataclasses.replace(built, config={**built.config, 'data': {'resolution': 256}})
    with pytest.raises(ValueError, match='cannot be drawn by the bucket of .* this network draws latents'):
        drawn_size(large, (48, 32), exact=False)
    assert drawn_size(recipe.build(configuration('flexvar_shapes')), (48, 32), exact=True) == (48, 32)
