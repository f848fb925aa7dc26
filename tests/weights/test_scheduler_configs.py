"""Sections read from published scheduler configs lead where diffusers' schedulers lead, live and stored."""

import functools
import importlib
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import scheduler_configs as published
from golden.seeded import relative_error, stored

from jaxgen import recipe
from jaxgen.conditioning.request import Request
from jaxgen.diffusion import path as paths
from jaxgen.diffusion import prediction as predictions
from jaxgen.diffusion import sampler as samplers
from jaxgen.weights import schedulers


class Model:
    """The fixed network in place of a recipe's."""

    def __init__(self, learned_variance: bool):
        self.learned_variance = learned_variance

    def __call__(self, params, x, t, cond):
        return published.network(x, t, self.learned_variance, jnp), {}, None


def sampler_of(sections: dict) -> samplers.DiffusionSampler:
    known = {'latent': published.SHAPE, 'resolution': 16, 'channels': 3}
    for section, module in (('path', paths), ('prediction', predictions)):
        known[section] = recipe.call(module.build, sections[section], known, section)
    known['learned_variance'] = known['prediction'].learned_variance
    known['networks'] = {'model': Model(known['learned_variance'])}
    return recipe.part('sampler', sections, known, sections['sampler']['name'])


def walk(case: str, again: bool = False) -> tuple:
    """Our ends by the number of steps; `again`: of the sections after a round trip."""
    sections = schedulers.sections_of(*published.CASES[case])
    if again:
        sections = schedulers.sections_of(*schedulers.config_of(**sections))
    return ends(json.dumps(sections))


@functools.cache
def ends(sections: str) -> tuple:
    """Where the sections lead; they are text, so that equal ones are walked once."""
    sampler = sampler_of(json.loads(sections))
    request = Request(None, None, published.keys())
    run = jax.jit(lambda knobs: sampler.sample({'model': None}, request, knobs))
    return tuple(np.asarray(run(sampler.knobs(steps=steps))) for steps in published.STEPS)


@pytest.mark.parametrize('case', published.CASES)
def test_ends_where_the_published_scheduler_ends(case):
    reference = stored('scheduler_configs')
    for steps, ours in zip(published.STEPS, walk(case)):
        error = relative_error(ours, reference[f'{case}/{steps}'])
        assert error <= 1e-4, (steps, error)


@pytest.mark.parametrize('case', published.CASES)
def test_round_trip_samples_alike(case):
    if case == 'sd_euler':
        class_name, _ = schedulers.config_of(**schedulers.sections_of(*published.CASES[case]))
        assert class_name == 'DDIMScheduler'
    for ours, again in zip(walk(case), walk(case, again=True)):
        assert relative_error(again, ours) <= 1e-5


@pytest.mark.parity
def test_the_published_schedulers_still_end_there():
    pytest.importorskip('diffusers')
    for case, (class_name, config) in published.CASES.items():
        for steps in published.STEPS:
            theirs = published.run(class_name, config, steps, *published.noises(steps))
            assert relative_error(theirs, stored('scheduler_configs')[f'{case}/{steps}']) <= 1e-5, case


@pytest.mark.parity
@pytest.mark.parametrize('case', published.CASES)
def test_what_is_written_loads_and_leads_to_the_same_end(case):
    pytest.importorskip('diffusers')
    class_name, config = schedulers.config_of(**schedulers.sections_of(*published.CASES[case]))
    steps = published.STEPS[0]
    theirs = published.run(class_name, config, steps, *published.noises(steps))
    assert relative_error(walk(case)[0], theirs) <= 1e-4


def test_defaults_are_those_of_the_parts():
    rooms = {'training_steps': 'spacings', 'uniform': 'spacings'}
    for name, defaults in schedulers.DEFAULTS.items():
        if name in ('path', 'prediction', 'sampler'):
            module = importlib.import_module(f'jaxgen.diffusion.{name}')
        else:
            module = importlib.import_module(f'jaxgen.diffusion.{rooms.get(name, "solvers")}.{name}')
        parameters = inspect.signature(module.build).parameters
        assert {key: parameters[key].default for key in defaults} == defaults, name


@pytest.mark.parity
def test_silent_options_are_diffusers_defaults():
    diffusers = pytest.importorskip('diffusers')
    for class_name, options in schedulers.OPTIONS.items():
        parameters = inspect.signature(getattr(diffusers, class_name).__init__).parameters
        assert {name: parameters[name].default for name in options} == {
            name: option.default for name, option in options.items()
        }


@pytest.mark.parametrize(
    ('class_name', 'config', 'said'),
    [
        ('PNDMScheduler', {}, 'DDIMScheduler samples from the same'),
        ('LCMScheduler', {}, 'no equal here'),
        ('DDIMScheduler', {}, 'clip_sample=True'),
        ('DDIMScheduler', {'clip_sample': False, 'timestep_spacing': 'linspace'}, 'timestep_spacing'),
        ('DPMSolverMultistepScheduler', {'solver_order': 3}, 'solver_order=3'),
        ('DPMSolverMultistepScheduler', {'use_karras_sigmas': True}, "name='karras'"),
        ('DPMSolverMultistepScheduler', {'trained_betas': [0.1]}, 'trained_betas'),
        ('DPMSolverMultistepScheduler', {'algorithm_type': 'dpmsolver'}, 'final_sigmas_type'),
        ('EulerDiscreteScheduler', {}, "timestep_spacing='linspace'"),
        ('FlowMatchEulerDiscreteScheduler', {'use_dynamic_shifting': True}, 'shift_at'),
    ],
)
def test_an_option_without_an_equal_is_refused_by_name(class_name, config, said):
    with pytest.raises(ValueError, match=said):
        schedulers.sections_of(class_name, config)


VP = {'name': 'vp'}
STEPS = {'output': 'noise', 'time': 'steps'}


@pytest.mark.parametrize(
    ('path', 'prediction', 'sampler', 'said'),
    [
        (VP, STEPS, {'solver': {'name': 'heun'}}, 'heun'),
        (VP, STEPS, {'solver': {'name': 'ddim', 'eta': 0.5}}, 'eta is 0.5'),
        (VP, STEPS, {'solver': {'name': 'ddim'}, 'shift': 2.0}, 'sampler.shift is 2.0'),
        (VP, {'output': 'score', 'time': 'steps'}, {'solver': {'name': 'ddim'}}, "output is 'score'"),
        (VP, {'output': 'noise'}, {'solver': {'name': 'ddim'}}, "time is 'thousand'"),
        ({'name': 'gvp'}, {}, {'solver': {'name': 'ddim'}}, 'path.name'),
        ({'name': 'linear'}, {}, {'solver': {'name': 'euler'}, 'shift': 3.0}, 'sampler.last=0.0089'),
        (VP, STEPS, {'solver': {'name': 'dpm_solver'}, 'spacing': {'name': 'karras'}}, 'karras'),
    ],
)
def test_what_no_published_scheduler_does_is_not_written(path, prediction, sampler, said):
    with pytest.raises(ValueError, match=said):
        schedulers.config_of(path, prediction, sampler)


def test_even_steps_are_written_as_trailing():
    sections = VP, STEPS, {'solver': {'name': 'ddim'}, 'steps': 50, 'guidance': 4.5}
    class_name, config = schedulers.config_of(*sections)
    assert class_name == 'DDIMScheduler' and config['timestep_spacing'] == 'trailing'
