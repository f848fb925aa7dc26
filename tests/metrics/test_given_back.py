"""Pictures go through a tokenizer by the jobs that draw, and are judged against what they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configurations import configuration
from PIL import Image

from jaxgen import recipe
from jaxgen.generate import labelled, make_generator
from jaxgen.objectives.fidelity import psnr
from jaxgen.program import assemble


def build(**changes):
    config = configuration('vq_shapes')
    for section, settings in changes.items():
        config[section] = settings
    return recipe.build(config)


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    monkeypatch.setenv('JAXGEN_DATA_DIR', str(tmp_path / 'data'))


def test_a_picture_goes_through_its_codes(tmp_path):
    built = build()
    example = built.metric.examples()[0]
    file = tmp_path / 'wide.png'
    Image.fromarray(np.pad(example['image'], ((0, 0), (7, 7), (0, 0)))).save(file)
    prompt = built.conditioner.example(str(file))
    np.testing.assert_array_equal(prompt['image'], example['image'])  # its middle
    params = built.init(jax.random.key(0))
    generate = make_generator(built, assemble(built, jax.devices()[:1]).mesh, 8)
    (drawn,) = generate(params, [prompt], [0], built.sampler.knobs())
    codes = built.tokenizer.codes(params, jnp.asarray(example['image'][None], jnp.float32) / 127.5 - 1)
    (expected,) = built.tokenizer.decode(params, built.tokenizer.embed(params, codes))
    assert np.abs(drawn.astype(int) - np.asarray(expected)).max() <= 1  # rounding
    (beside,) = labelled(built, [prompt])['beside']
    np.testing.assert_array_equal(beside, example['image'])


def test_scores():
    built = build()
    examples = built.metric.examples()
    images = np.stack([example['image'] for example in examples])
    noisy = np.clip(images + np.random.default_rng(0).normal(0, 8, images.shape), 0, 255).astype(np.uint8)
    found = built.metric.score(noisy, examples)
    each = psnr(jnp.float32(noisy) / 255, jnp.float32(images) / 255)
    assert found['psnr'] == pytest.approx(float(each.mean()), rel=1e-5)
    assert 0 < found['ssim'] < built.metric.score(images, examples)['ssim'] == pytest.approx(1)
    with pytest.raises(ValueError, match='one for each'):
        built.metric.score(images[:3], examples)


@pytest.mark.parametrize(
    ('call', 'said'),
    [
        (lambda: build(conditioner={'name': 'labels'}), "wants conditioner.name='pictures'"),
        (lambda: build().sampler.knobs(steps=3), 'has no knobs'),
        (lambda: build().sampler.at((4, 4, 4)), 'leave --size out'),
        (lambda: build().conditioner.example('/no/such.png'), 'cannot be read'),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
