"""The averages of parameters against their closed forms, and EDM2's reconstruction of other widths."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import recipe
from jaxgen.training import ema

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'edm2_ema.npz'


def test_average_is_float32_and_exact():
    params = {'a': jnp.asarray([1.0, 2.0], jnp.bfloat16), 'codes': jnp.asarray([3], jnp.int8)}
    average = ema.init(params)
    assert average['a'].dtype == jnp.float32 and average['codes'].dtype == jnp.int8
    expected = np.asarray([1.0, 2.0])
    kept = ema.build(decay=0.75, warmup=False)
    for step in range(4):
        params = jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), params)
        average = ema.update(average, params, kept.rate(step))
        expected = 0.75 * expected + 0.25 * np.asarray(params['a'], np.float64)
    np.testing.assert_allclose(average['a'], expected, rtol=1e-6)
    assert average['codes'][0] == 7


def test_warmup_grows_to_the_decay():
    rates = np.asarray([ema.build(decay=0.999).rate(step) for step in (0, 10, 10**6)])
    np.testing.assert_allclose(1 - rates, [0.1, 11 / 20, 0.999], rtol=1e-6)


def test_average_does_not_share_buffers_with_the_parameters():
    params = {'a': jnp.ones(4)}
    average = ema.init(params)
    step = jax.jit(
        lambda a, p: (ema.update(a, p, 0.5), jax.tree.map(lambda x: x * 2, p)), donate_argnums=(0, 1)
    )
    average, params = step(average, params)
    np.testing.assert_array_equal(average['a'], 1.0)
    np.testing.assert_array_equal(params['a'], 2.0)


def walk(widths, steps, seed=0):
    """A random walk of parameters and, after each step, its averages of those widths, as training does it."""
    kept = ema.build('power', widths=widths)
    points = np.cumsum(np.random.default_rng(seed).normal(size=(steps, 16)), axis=0).astype(np.float32)

    def step(averages, one):
        count, point = one
        averages = [ema.update(a, point, kept.rate(count, w)) for a, w in zip(averages, widths)]
        return averages, averages

    start = [jnp.full(16, 1e3)] * len(widths)  # forgotten by the first step
    _, averages = jax.lax.scan(step, start, (jnp.arange(steps), points))
    return points, np.stack(averages, 1)


@pytest.mark.parametrize('width', [0.05, 0.1, 0.25])
def test_a_tracked_profile_is_the_power_function(width):
    """The decays' product telescopes: point tau has the weight (tau/T)^p - ((tau-1)/T)^p, p = gamma + 1."""
    points, averages = walk((width,), 300)
    power = ema.width_to_exponent(width) + 1
    weights = np.diff((np.arange(301) / 300) ** power)
    expected = (weights[:, None] * points.astype(np.float64)).sum(0)
    np.testing.assert_allclose(averages[-1, 0], expected, atol=1e-5 * np.abs(expected).max())
    times = np.arange(1, 301) - 0.5
    mean = (weights * times).sum()
    spread = np.sqrt((weights * (times - mean) ** 2).sum())
    assert spread / 300 == pytest.approx(width, rel=2e-3)


def test_late_in_a_long_run_the_rate_is_still_exact():
    kept = ema.build('power', widths=(0.05,))
    updates = 20_000_000
    expected = -np.expm1((ema.width_to_exponent(0.05) + 1) * np.log1p(-1 / (updates + 1)))
    assert float(kept.rate(updates)) == pytest.approx(expected, rel=1e-5)


def test_reconstruction_gives_widths_that_were_not_stored():
    wanted = (0.06, 0.08, 0.13)
    _, averages = walk((0.05, 0.1, *wanted), 2000)
    times = np.arange(100, 2001, 100)
    stored = [averages[time - 1, i] for time in times for i in (0, 1)]
    for i, width in enumerate(wanted):
        weights = ema.coefficients(np.repeat(times, 2), (0.05, 0.1) * len(times), 2000, width)
        ours = ema.reconstruct([{'a': tree} for tree in stored], weights)['a']
        error = np.linalg.norm(ours - averages[-1, 2 + i]) / np.linalg.norm(averages[-1, 2 + i])
        # Another width than the one asked for is far off: the bound means something.
        nearest = min(np.linalg.norm(averages[-1, j] - averages[-1, 2 + i]) for j in (0, 1))
        assert error < 2e-3 and nearest / np.linalg.norm(averages[-1, 2 + i]) > 10 * error
        earlier = ema.coefficients(np.repeat(times[:10], 2), (0.05, 0.1) * 10, 1000, width)
        ours = ema.reconstruct([{'a': tree} for tree in stored[:20]], earlier)['a']
        np.testing.assert_allclose(ours, averages[999, 2 + i], atol=5e-3 * np.abs(ours).max())


def test_a_stored_width_comes_back_as_it_is():
    weights = ema.coefficients([50, 50, 100, 100], [0.05, 0.1, 0.05, 0.1], 100, 0.1)
    np.testing.assert_allclose(weights, [0, 0, 0, 1], atol=1e-9)


def test_formulas_equal_the_authors():
    golden = np.load(GOLDEN)
    exponents = [ema.width_to_exponent(width) for width in golden['widths']]
    np.testing.assert_allclose(exponents, golden['exponents'], rtol=1e-9)
    for width, expected in zip(golden['widths'], golden['decays']):
        rates = [ema.build('power', widths=(float(width),)).rate(int(t) - 1) for t in golden['times']]
        np.testing.assert_allclose(1 - np.asarray(rates), expected, rtol=2e-6, atol=1e-6)
    for i, width in enumerate(golden['wanted']):
        ours = ema.coefficients(golden['stored_times'], golden['stored_widths'], golden['at'], width)
        np.testing.assert_allclose(ours, golden['coefficients'][:, i], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ('settings', 'sentence'),
    [
        ({'profile': 'powr'}, "ema.profile is 'powr'"),
        ({'profile': 'power', 'widths': (0.05, 0.5)}, 'ema.widths has 0.5.*at most 0.289'),
        ({'profile': 'power', 'widths': ('a',)}, 'ema.widths is'),
        ({'profile': 'power', 'widths': (0.1, 0.1)}, 'different widths'),
        ({'decay': 1.0}, 'ema.decay is 1.0'),
    ],
)
def test_what_is_no_average_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        recipe.call(ema.build, settings, {}, 'ema')
