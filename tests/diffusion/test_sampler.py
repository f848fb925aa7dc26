"""The sampler composes: what the parts choose for each other, and one compilation for every request."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configurations import configuration
from diffusion.mixture import Mixture
from nouns import tiny

from jaxgen import recipe
from jaxgen.conditioning.request import Request
from jaxgen.diffusion import path as paths
from jaxgen.diffusion import sampler
from jaxgen.diffusion.prediction import Prediction
from jaxgen.diffusion.solvers import ddim, dopri5, edm, euler, sde
from jaxgen.diffusion.spacings import karras
from jaxgen.generate import make_generator
from jaxgen.program import assemble

LINEAR, VP = paths.Linear(), paths.ContinuousVariancePreserving()


@pytest.mark.parametrize(
    'path, output, solver, ends',
    [
        (LINEAR, 'velocity', euler.build(), (1, 0, 0)),
        (LINEAR, 'noise', euler.build(), (0.999, 0, 0)),
        (LINEAR, 'score', euler.build(), (0.999, 0, 0)),
        (LINEAR, 'velocity', sde.build(LINEAR), (0.999, 0, 0.04)),
        (LINEAR, 'velocity', sde.build(LINEAR, diffusion='sigma'), (1, 0, 0.04)),
        (LINEAR, 'velocity', edm.build(LINEAR), (0.999, 0, 0)),
        (LINEAR, 'velocity', dopri5.build(), (1, 0, 0)),
        (LINEAR, 'data', dopri5.build(), (1, 1e-3, 0)),
        (VP, 'velocity', dopri5.build(), (1, 1e-3, 0)),
        (VP, 'noise', sde.build(VP, last_step='none'), (1, 0, 1e-3)),
    ],
)
def test_begin_end_and_last_follow_from_the_parts(path, output, solver, ends):
    made = sampler.build({'model': None}, path, Prediction(output), solver, (1,), 1)
    assert tuple(made.defaults[name] for name in ('begin', 'end', 'last')) == pytest.approx(ends)


def test_a_begin_without_a_meaning_is_refused():
    arguments = {'model': None}, LINEAR, Prediction('noise'), euler.build(), (1,), 1
    with pytest.raises(ValueError, match='begins at 1.0; above 0.999'):
        sampler.build(*arguments, begin=1.0)
    with pytest.raises(ValueError, match='begins at 1; above 0.999'):
        sampler.build(*arguments).knobs(begin=1)


@pytest.mark.parametrize(
    'path, output, solver, spacing, steps',
    [
        (LINEAR, 'noise', euler.build(), None, 60),
        (LINEAR, 'velocity', dopri5.build(), None, 1),
        (VP, 'noise', dopri5.build(), None, 1),
        (VP, 'score', euler.build(), karras.build(VP), 60),
        (paths.VarianceExploding(), 'data', edm.build(paths.VarianceExploding(), 20.0), 'karras', 60),
    ],
    ids=['noise on a line', 'dopri5', 'dopri5 on VP', 'karras on VP', 'edm'],
)
def test_noise_becomes_data(path, output, solver, spacing, steps):
    mixture, prediction = Mixture(), Prediction(output, 'unit')
    spacing = karras.build(path) if spacing == 'karras' else spacing
    made = sampler.build({'model': None}, path, prediction, solver, (1,), 1, spacing, steps)
    request = Request(None, None, jax.random.split(jax.random.key(0), 5000))
    denoiser = mixture.denoiser(path, prediction)
    end = np.asarray(jax.jit(lambda knobs: made.walk(denoiser, None, request, knobs))(made.knobs()))
    mean, variance = mixture.moments(path, 0.0)
    assert abs(end.mean() - mean[0]) < 0.06 and abs(end.var() / variance[0] - 1) < 0.08


def test_a_corrector_brings_any_solver_nearer():
    prediction = Prediction('data', 'unit')
    request = Request(None, None, jax.random.split(jax.random.key(0), 500))
    denoiser = Mixture().denoiser(VP, prediction)

    def walk(steps: int, corrector: int = 0, solver=None) -> np.ndarray:
        solver = solver or ddim.build()
        made = sampler.build(
            {'model': None}, VP, prediction, solver, (1,), 1, steps=steps, end=0.05, corrector=corrector
        )
        return np.asarray(jax.jit(lambda knobs: made.walk(denoiser, None, request, knobs))(made.knobs()))

    exact = walk(2000)
    missed = [np.abs(walk(40, corrector) - exact).mean() for corrector in (0, 1)]
    assert missed[1] < missed[0] / 3
    with pytest.raises(ValueError, match='takes back fresh noise'):
        walk(4, 1, ddim.build(eta=1.0))


def test_in_painting_stops_at_every_step():
    """What is known is painted back at the spacing's times, so that the rest can follow it."""
    mixture = Mixture((0.5, 0.5), ((-1.0, -1.0), (1.0, 1.0)), (0.2, 0.2))
    made = sampler.build({'model': None}, LINEAR, Prediction('velocity', 'unit'), dopri5.build(), (2,), 1)
    init, mask = jnp.tile(jnp.asarray([[1.0, 0.0]]), (256, 1)), jnp.tile(jnp.asarray([[0.0, 1.0]]), (256, 1))
    request = Request(None, None, jax.random.split(jax.random.key(0), 256), init, mask)
    denoiser = mixture.denoiser(LINEAR, made.prediction)
    end = jax.jit(lambda knobs: made.walk(denoiser, None, request, knobs))(made.knobs(steps=30))
    np.testing.assert_allclose(end[:, 0], 1, atol=1e-6)
    assert (end[:, 1] > 0).mean() > 0.65  # unknown to the painting it would be half


FLOW = {'name': 'linear'}, {'output': 'velocity'}
DDPM = {'name': 'vp'}, {'output': 'noise', 'time': 'steps'}
EDM = {'name': 've'}, {'output': 'edm', 'time': 'log_sigma'}
CASES = {
    'flow': (*FLOW, {'solver': {'name': 'heun'}}, {'shift': 3.0, 'begin': 0.9, 'end': 0.1}),
    'sde': (*FLOW, {'solver': {'name': 'sde', 'method': 'heun'}}, {'last': 0.1}),
    'dopri5': (*FLOW, {'solver': {'name': 'dopri5'}}, {'end': 0.01}),
    'training steps': (
        *DDPM,
        {'solver': {'name': 'midpoint'}, 'spacing': {'name': 'training_steps', 'max_steps': 30}},
        {'steps': 30},
    ),
    'edm': (
        *EDM,
        {'solver': {'name': 'edm', 'churn': 5.0}, 'spacing': {'name': 'karras'}},
        {'rho': 5.0, 'sigma_min': 0.1, 'sigma_max': 20.0},
    ),
}
ANYTHING = {'steps': 7, 'guidance': 1.0, 'low': 0.2, 'high': 0.7, 'rescale': 0.5, 'shift': 2}


def compiled(caplog, run):
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        result = run()
    return result, [r.getMessage() for r in caplog.records if r.getMessage().startswith('Compiling')]


@pytest.mark.parametrize('name', CASES)
def test_labels_and_knobs_compile_nothing(name, caplog):
    path, prediction, settings, knobs = CASES[name]
    made = tiny.build(
        model={'name': 'dit', 'patch': 4, 'hidden': 16, 'depth': 1, 'heads': 2},
        path=path,
        prediction=prediction,
        sampler={'name': 'diffusion', 'steps': 3, 'guidance': 2.0, **settings},
    )
    params = jax.tree.map(lambda leaf: 3 * leaf, tiny.randomised(made))
    generate = make_generator(made, assemble(made, jax.devices()[:1]).mesh, 2)

    def draw(labels, seeds, **changes):
        examples = [{'label': label} for label in labels]
        return generate(params, examples, seeds, made.sampler.knobs(**changes))

    warm, first = compiled(caplog, lambda: draw([0, 1], [5, 6]))
    assert any('draw' in message for message in first)  # it would be seen
    for labels, seeds, changes in (
        ([2, 3], [5, 6], {}),
        ([0, 1], [7, 8], {}),
        *(([0, 1], [5, 6], {knob: value}) for knob, value in (ANYTHING | knobs).items()),
    ):
        changed, again = compiled(caplog, lambda: draw(labels, seeds, **changes))  # noqa: B023
        assert not again, (changes, again)
        if 'guidance' in changes or not changes:
            assert (changed != warm).any(), (labels, seeds, changes)


def test_prompts_compile_nothing(caplog):
    built = recipe.build(configuration('quickstart'))
    params = tiny.randomised(built)
    generate = make_generator(built, assemble(built, jax.devices()[:1]).mesh, 1)

    def draw(prompt):
        return generate(params, [built.conditioner.example(prompt)], [5], built.sampler.knobs())

    warm, first = compiled(caplog, lambda: draw('a red circle'))
    assert first
    for prompt in ('two blue squares', '', 'a large green triangle at the top left on grey'):
        changed, again = compiled(caplog, lambda: draw(prompt))  # noqa: B023
        assert not again and (changed != warm).any(), (prompt, again)
