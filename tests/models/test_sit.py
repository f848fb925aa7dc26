"""SiT, DiT's network with outputs that it throws away, against the authors' code, live and stored."""

import numpy as np
import pytest
from golden import authors, cases
from golden.seeded import disagreements, stored

from jaxgen.models import dit
from jaxgen.weights import dit as dit_names
from jaxgen.weights.names import to_published

TOLERANCE = 1e-4
FULL = pytest.param(cases.DIT_FULL, marks=pytest.mark.slow, id='full width')


def _ours(settings):
    network, table = cases.build('dit', settings)
    x, condition = cases.image(cases.DIT_GRID), cases.dit_condition()
    params = cases.parameters(network, table, x, condition)
    return params, cases.run(network, params, x, condition, cases.cotangent(cases.DIT_GRID, 4))


def _assert_equals(ours, reference):
    """Ours against the authors' results, as far as those are there."""
    out, by_x, by_params = ours[1]
    ours = to_published(dit_names.authors(2), by_params) | {'out': out, 'by_x': by_x}
    assert len(reference) >= 10 and set(reference) <= set(ours)
    assert not disagreements(ours, reference, TOLERANCE)


def test_golden():
    _assert_equals(_ours(cases.DIT | cases.SIT), dict(stored('sit')))


@pytest.mark.parity
@pytest.mark.parametrize('settings', [pytest.param(cases.DIT, id='tiny'), FULL])
def test_output_and_gradients_equal_authors(settings):
    pytest.importorskip('torch')
    if not authors.checkout('JAXGEN_SIT'):
        pytest.skip("JAXGEN_SIT names no checkout of the authors' code")
    settings = settings | cases.SIT
    ours = _ours(settings)
    table = dit_names.authors(2)
    model = authors.dit_model(to_published(table, ours[0]), settings)
    authors.assert_loads(model, table, ours[0])
    _assert_equals(ours, authors.run_labels(model, cases.image(cases.DIT_GRID), settings))


def test_what_is_thrown_away_has_no_gradient():
    kernel = _ours(cases.DIT | cases.SIT)[1][2]['final']['out']['kernel'].reshape(24, 4, 8)
    assert np.abs(kernel[..., :4]).min() > 0 and not kernel[..., 4:].any()
    with pytest.raises(ValueError, match='discarded'):
        dit.build(learned_variance=True, discard_variance=True)
