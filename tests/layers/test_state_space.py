"""The state-space layer: its scan by chunks is the recurrence token by token, and costs the same a token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.seeded import normal, relative_error

from jaxgen.layers.state_space import STEPS, StateSpace, blank, scan

BATCH, HEADS, WIDTH, STATE = 2, 3, 4, 5


def given(length, fading=1.0):
    dt = np.log1p(np.exp(normal('dt', (BATCH, length, HEADS))))
    return (
        normal('x', (BATCH, length, HEADS, WIDTH)),
        dt,
        -fading * np.exp(normal('a', (HEADS,))),
        normal('b', (BATCH, length, STATE)),
        normal('c', (BATCH, length, STATE)),
        normal('state', (BATCH, HEADS, WIDTH, STATE)),
    )


def recurrence(x, dt, a, b, c, state):
    """As the paper's first equations say, in float64."""
    state, rows = np.asarray(state, np.float64), []
    for token in range(x.shape[1]):
        written = dt[:, token, :, None, None] * x[:, token, :, :, None] * b[:, token, None, None]
        state = np.exp(a * dt[:, token])[:, :, None, None] * state + written
        rows.append((state * c[:, token, None, None]).sum(-1))
    return np.stack(rows, 1), state


@pytest.mark.parametrize(('length', 'chunk'), [(1, 8), (7, 8), (8, 8), (37, 8), (37, 64), (37, 1)])
def test_chunks_are_the_recurrence(length, chunk):
    arguments = given(length)
    y, state = jax.jit(scan, static_argnums=6)(*arguments, chunk)
    expected, last = recurrence(*arguments)
    assert relative_error(y, expected) < 1e-5 and relative_error(state, last) < 1e-5


def test_nothing_overflows_where_states_fade_fast():
    arguments = given(70, fading=100.0)

    def total(*arguments):
        y, state = scan(*arguments)
        return (y**2).sum() + (state**2).sum()

    gradients = jax.jit(jax.grad(total, argnums=tuple(range(6))))(*arguments)
    assert all(np.isfinite(each).all() for each in gradients)


def test_two_calls_are_one():
    layer = StateSpace(HEADS, WIDTH, STATE)
    x = normal('tokens', (BATCH, 21, 6))
    params = layer.init(jax.random.key(0), x)

    @jax.jit
    def run(x, memory):
        y, kept = layer.apply(params, x, memory, mutable=['features'])
        return y, kept['features']

    whole, expected = run(x, None)
    memory, parts = blank(BATCH, HEADS, WIDTH, STATE, jnp.float32), []
    for start, stop in ((0, 1), (1, 3), (3, 21)):
        y, memory = run(x[:, start:stop], memory)
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), memory, dict(expected))


def test_no_token_sees_a_later_one():
    layer = StateSpace(HEADS, WIDTH, STATE)
    x = normal('tokens', (BATCH, 70, 6))
    params = layer.init(jax.random.key(0), x)
    run = jax.jit(lambda x: layer.apply(params, x))
    whole = run(x)
    for token in (5, 63, 64):
        moved = np.abs(run(jnp.asarray(x).at[:, token].add(1.0)) - whole).max((0, 2))
        assert (moved[:token] == 0).all() and (moved[token:] > 0).all()


def test_it_costs_as_much_a_token_however_many_there_are():
    def operations(length):
        return jax.jit(scan).lower(*given(length)).compile().cost_analysis()['flops']

    assert operations(2048) / operations(512) == pytest.approx(4, rel=0.05)


def test_it_begins_as_published():
    layer = StateSpace(256, 4, 8)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 2, 8)))['params']
    steps, rates = jax.nn.softplus(params['step_bias']), jnp.exp(params['decay_bias'])
    assert steps.min() >= 0.99 * STEPS[0] and steps.max() <= 1.01 * STEPS[1]
    assert abs(jnp.log(steps).mean() - np.log(STEPS).mean()) < 0.3
    assert rates.min() >= 1 and rates.max() <= 16 and abs(rates.mean() - 8.5) < 1
    assert (params['skip_scale'] == 1).all()
