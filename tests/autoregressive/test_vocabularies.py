"""Masked generation on codes of lookup-free bottlenecks, a few and many: what each part hands the next."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configurations import configuration

from jaxgen import recipe
from jaxgen.conditioning.request import Request


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path_factory):
    monkeypatch.setenv('JAXGEN_DATA_DIR', str(tmp_path_factory.getbasetemp() / 'data'))


@pytest.mark.parametrize(('variant', 'tokens', 'vocabulary'), [('fsq', 64, 1000), ('bsq', 128, 512)])
def test_codes_are_learned_and_drawn_as_tokens(variant, tokens, vocabulary):
    config = configuration('maskgit_shapes', variant)
    config.data.update(examples=16, test_examples=16)
    config.tokenizer.update(widths=(8, 8), groups=4)
    config.model.update(depth=1, hidden=16, heads=2, multiple=16)
    built, batch = recipe.build(config), 2
    params, keys = built.init(jax.random.key(0)), jax.random.split(jax.random.key(1), batch)
    images = np.random.RandomState(0).randint(0, 256, (batch, 32, 32, 3)).astype(np.uint8)
    label = jnp.arange(batch)
    trained = {'model': params['model']}
    frozen = {'networks': {'tokenizer': params['tokenizer']}}
    given = {'image': images, 'label': label}
    total, weight, _, metrics = jax.jit(built.objective.phases[0].loss)(
        trained, {}, frozen, given, keys, jnp.int32(0)
    )
    assert 2 <= weight <= batch * tokens and set(metrics) == {'accuracy'}
    assert abs(total / weight - np.log(vocabulary)) < 0.5
    cond, null = ({'label': label, 'drop': jnp.full(batch, drop)} for drop in (False, True))
    sampler = built.sampler
    latents, (drawn,), _ = jax.jit(sampler.decode)(params, Request(cond, null, keys), sampler.knobs(steps=2))
    assert drawn.shape == (batch, tokens) and 0 <= drawn.min() and vocabulary * 0.5 < drawn.max() < vocabulary
    assert latents.shape == (batch, *built.tokenizer.latent)
    codes = built.tokenizer.quantize(params, latents)[0] if variant == 'bsq' else drawn
    places = codes if variant == 'fsq' else jnp.stack([codes % 512, codes // 512], -1).reshape(batch, -1)
    np.testing.assert_array_equal(places, drawn)
