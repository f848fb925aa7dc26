"""VA-VAE against the authors' code with the same random weights and statistics, live and stored."""

import os

import jax
import numpy as np
import pytest
from golden import make_va_vae as cases
from golden.seeded import disagreements, relative_error, stored

from jaxgen.tokenizers import va_vae

TOLERANCE = 1e-4


def run(tokenizer):
    params = cases.parameters(tokenizer)

    @jax.jit
    def results(params, x, latents):
        moments = tokenizer.network.apply({'params': params}, x, method='moments')
        mean = moments[..., : tokenizer.network.channels]
        likely = tokenizer.network.apply({'params': params}, mean, method='normalised')
        return moments, likely, tokenizer.pixels({'tokenizer': params}, latents)

    outputs = results(params, cases.image(), cases.latents(tokenizer))
    return dict(zip(('moments', 'latents', 'pixels'), outputs))


def test_golden():
    reference = dict(stored('va_vae'))
    assert len(reference) == 3
    assert not disagreements(run(va_vae.build(**cases.TINY)), reference, TOLERANCE)


@pytest.mark.parity
@pytest.mark.parametrize(
    'settings', [cases.TINY, pytest.param(cases.FULL, marks=pytest.mark.slow)], ids=['tiny', 'full']
)
def test_equals_authors(settings):
    pytest.importorskip('torch')
    if not os.environ.get('JAXGEN_LIGHTNINGDIT'):
        pytest.skip("JAXGEN_LIGHTNINGDIT names no checkout of the authors' code")
    tokenizer = va_vae.build(**settings)
    ours, reference = run(tokenizer), cases.authors(tokenizer)
    print({name: relative_error(ours[name], reference[name]) for name in reference})
    assert not disagreements(ours, reference, TOLERANCE)


def test_published_size():
    tokenizer = va_vae.build()
    assert tokenizer.latent == (16, 16, 32)
    params = jax.eval_shape(tokenizer.init, jax.random.key(0))['tokenizer']
    statistics = params.pop('statistics')
    assert {name: leaf.shape for name, leaf in statistics.items()} == {'mean': (32,), 'deviation': (32,)}
    # The authors' own class counted in torch.
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 69_836_067
