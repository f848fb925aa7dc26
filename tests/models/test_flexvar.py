"""FlexVAR against the authors' code with the same random weights, by the scales it has and by others."""

import os

import jax
import numpy as np
import pytest
from golden import make_flexvar as cases
from golden.seeded import disagreements, stored

from jaxgen.models import flexvar, var
from jaxgen.weights import flexvar as names
from jaxgen.weights.names import to_jaxgen, to_published

TOLERANCE = 1e-4
BOTH = pytest.mark.parametrize('sides', [cases.SIDES, cases.OTHER], ids=str)


@BOTH
def test_golden(sides):
    every, prefix = stored('flexvar'), f'{sides[-1]}/'
    reference = {name.removeprefix(prefix): every[name] for name in every.files if name.startswith(prefix)}
    ours = cases.run(cases.parameters(), sides)
    assert len(reference) >= 20 and set(reference) <= set(ours)
    assert not disagreements(ours, reference, TOLERANCE)


@pytest.mark.parity
@BOTH
def test_logits_and_gradients_equal_authors(sides):
    pytest.importorskip('torch')
    if not os.environ.get('JAXGEN_FLEXVAR'):
        pytest.skip("JAXGEN_FLEXVAR names no checkout of the authors' code")
    params = cases.parameters()
    model = cases.authors(os.environ['JAXGEN_FLEXVAR'], to_published(names.authors(), params))
    published = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    jax.tree.map(np.testing.assert_array_equal, to_jaxgen(names.authors(), published, params), params)
    assert not disagreements(cases.run(params, sides), cases.run_authors(model, sides), TOLERANCE)


def test_the_table_begins_as_the_authors_does():
    table = flexvar.sinusoids(4, 6)
    assert table.shape == (4, 4, 6)
    np.testing.assert_allclose(table[2, 3, 0::2], np.sin(2 * 10000.0 ** (-np.arange(0, 6, 2) / 6)), rtol=1e-6)
    np.testing.assert_allclose(table[2, 3, 1::2], np.cos(3 * 10000.0 ** (-np.arange(0, 6, 2) / 6)), rtol=1e-6)


def test_no_parameter_depends_on_the_scales():
    def shapes(scales):
        network = flexvar.build(scales=scales, **cases.SETTINGS)
        params = jax.eval_shape(network.init, jax.random.key(0), *names.inputs(network))
        return jax.tree.map(lambda leaf: leaf.shape, params)

    assert shapes(var.squares(cases.SIDES)) == shapes(((1, 1), (2, 3), (5, 9)))
