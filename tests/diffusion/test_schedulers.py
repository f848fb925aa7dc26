"""Walks equal to those of diffusers' schedulers and of DiT's authors, given the same network and noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import schedulers, seeded

from jaxgen import keys
from jaxgen.diffusion import path as paths
from jaxgen.diffusion.prediction import Prediction
from jaxgen.diffusion.solvers import State, ddim, ddpm, dpm_solver, unipc

SOLVERS = {'ddim': ddim, 'ddpm': ddpm, 'dpm_solver': dpm_solver, 'unipc': unipc}
CASES = schedulers.cases()
AUTHORS = {
    f'dit/{steps}': schedulers.case('', {}, 'ddpm', {'variance': 'learned'}, steps, learned_variance=True)
    for steps in (5, 20)
}


@functools.cache
def stepper(solver: tuple, betas: str | None, prediction: str, learned_variance: bool) -> tuple:
    """The solver and its jitted step, shared by all cases that differ in their number of steps alone."""
    name, settings = solver
    made = SOLVERS[name].build(**dict(settings))
    path = paths.VariancePreserving(betas) if betas else paths.Linear()
    convention = Prediction(prediction, 'unit', learned_variance)

    def evaluate(x, t, memory, evaluation=0):
        output = schedulers.network(x, t, learned_variance, jnp)
        return convention.estimate(path, x, jnp.full(x.shape[:1], t), output), memory

    return made, jax.jit(lambda state, t, t_next, noise: made.step(state, evaluate, t, t_next, noise))


def walk(case: schedulers.Case, times: np.ndarray) -> np.ndarray:
    """Ours, the noise handed in where the keys belong."""
    solver, step = stepper(case.solver, case.betas, case.prediction, case.learned_variance)
    x = jnp.asarray(schedulers.start())
    state, seen = State(x, solver.init(x), None, 0, case.steps), [x]
    for i in range(case.steps):
        t, t_next, noise = (jnp.float64(a) for a in (times[i], times[i + 1], schedulers.noise(i)))
        state = step(state.replace(step=jnp.int32(i), steps=jnp.int32(case.steps)), t, t_next, noise)
        seen.append(state.x)
    return np.stack(seen)


@pytest.fixture
def keys_are_noise(monkeypatch) -> None:
    monkeypatch.setattr(keys, 'draw', lambda sampler, noise, shape: noise)


def followed(case: schedulers.Case, stored: np.ndarray) -> float:
    with jax.enable_x64(True):
        ours = walk(case, stored[:, 0].astype(np.float64))
    ours, theirs = ours.reshape(len(ours), -1), stored[:, 1:]
    return float((np.abs(ours - theirs).max(1) / np.abs(theirs).max(1)).max())


@pytest.mark.parametrize('name', [*CASES, *AUTHORS])
@pytest.mark.usefixtures('keys_are_noise')
def test_walks_like_the_public_sampler(name: str) -> None:
    error = followed({**CASES, **AUTHORS}[name], seeded.stored('solvers')[name])
    assert error < 1e-5, error


@pytest.mark.parity
def test_the_public_samplers_still_walk_so() -> None:
    pytest.importorskip('diffusers')
    stored = seeded.stored('solvers')
    for name, case in CASES.items():
        error = seeded.relative_error(schedulers.packed(*schedulers.run(case)), stored[name])
        assert error < 1e-5, (name, error)
