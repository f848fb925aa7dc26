"""DiT against diffusers with the same random weights, against golden arrays, and in its published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import authors, cases, diffusers_networks
from golden.seeded import disagreements, stored

from jaxgen.layers.embeddings import sinusoids
from jaxgen.models import dit
from jaxgen.weights import dit as dit_names
from jaxgen.weights.names import to_published

TOLERANCE = 1e-4
FULL = pytest.param(cases.DIT_FULL, marks=pytest.mark.slow, id='full width')
BOTH = pytest.mark.parametrize('settings', [pytest.param(cases.DIT, id='tiny'), FULL])


def _ours(settings):
    network, table = cases.build('dit', settings)
    x, condition = cases.image(cases.DIT_GRID), cases.dit_condition()
    params = cases.parameters(network, table, x, condition)
    return network, params, cases.run(network, params, x, condition, cases.cotangent(cases.DIT_GRID))


@pytest.mark.parity
@BOTH
def test_output_and_gradients_equal_diffusers(settings):
    torch = pytest.importorskip('torch')
    # Latents of half the config's size; diffusers' DiT is for square ones alone.
    settings = settings | {'frequency_shift': 1, 'norm_epsilon': 1e-3, 'base_size': cases.DIT_GRID[0]}
    network, params, results = _ours(settings)
    table = dit_names.layouts(network)['diffusers']
    theirs = diffusers_networks.build(dit_names.to_config(network), table, params)
    inputs = {
        'timestep': torch.from_numpy(cases.TIMES),
        'class_labels': torch.from_numpy(cases.labels(settings)),
    }
    diffusers_networks.assert_equals(theirs, table, results, cases.image(cases.DIT_GRID), inputs, TOLERANCE)


def _assert_equals(ours, reference):
    """Ours against the authors' results, as far as those are there."""
    network, _, (out, by_x, by_params) = ours
    table = dit_names.layouts(network)['authors']
    ours = to_published(table, by_params) | {'out': out, 'by_x': by_x}
    assert len(reference) >= 10 and set(reference) <= set(ours)
    assert not disagreements(ours, reference, TOLERANCE)


def test_golden():
    _assert_equals(_ours(cases.DIT), dict(stored('dit')))


@pytest.mark.parity
@BOTH
def test_output_and_gradients_equal_authors(settings):
    pytest.importorskip('torch')
    if not authors.checkout('JAXGEN_DIT'):
        pytest.skip("JAXGEN_DIT names no checkout of the authors' code")
    ours = _ours(settings)
    table = dit_names.authors(2)
    model = authors.dit_model(to_published(table, ours[1]), settings)
    authors.assert_loads(model, table, ours[1])
    _assert_equals(ours, authors.run_labels(model, cases.image(cases.DIT_GRID), settings))


@pytest.mark.parametrize(
    ('size', 'patch', 'count'),
    # The authors' own classes counted in torch, without the fixed position table.
    [
        ('XL', 2, 674_834_720),
        ('XL', 8, 675_664_640),
        ('L', 4, 457_988_224),
        ('B', 2, 130_315_808),
        ('S', 8, 33_142_016),
    ],
)
def test_published_parameter_counts(size, patch, count):
    network = dit.build(size=size, patch=patch)
    x = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32)
    condition = {'label': jax.ShapeDtypeStruct((1,), jnp.int32), 'drop': jax.ShapeDtypeStruct((1,), bool)}
    params = jax.eval_shape(
        network.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.float32), condition
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_diffusers_spaces_the_frequencies_of_time_differently():
    t = jnp.array([1.0])
    cosines = np.cos(10000.0 ** (-np.arange(4) / 4)), np.cos(10000.0 ** (-np.arange(4) / 3))
    for shift, cosine in enumerate(cosines):
        np.testing.assert_allclose(sinusoids(t, 8, frequency_shift=shift)[0, :4], cosine, rtol=1e-5)
