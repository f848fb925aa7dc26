"""The scheduler_config.json of a published folder <-> the sections path, prediction and sampler of a config.

diffusers' schedulers mix what is apart here: the noise schedule, what the network's output means, the solver,
where its steps stand. What a published config leaves out has diffusers' default; an option without an equal
here is refused by name. A scheduler does not say how many steps to take, nor whether its network puts out a
variance that the solver leaves unread.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

Section = dict[str, Any]

BETAS = {'linear': 'linear', 'scaled_linear': 'scaled_linear', 'squaredcos_cap_v2': 'cosine'}
OUTPUTS = {'epsilon': 'noise', 'sample': 'data', 'v_prediction': 'v'}
ALGORITHMS = {
    'dpmsolver++': {'predict': 'data', 'stochastic': False},
    'sde-dpmsolver++': {'predict': 'data', 'stochastic': True},
    'dpmsolver': {'predict': 'noise', 'stochastic': False},
}
VARIANCES = {
    'fixed_small': 'fixed_small',
    'fixed_large': 'fixed_large',
    'learned_range': 'learned',
    'fixed_small_log': 'fixed_small',
}
INSTEAD = {
    'PNDMScheduler': 'DDIMScheduler',
    'DPMSolverSinglestepScheduler': 'DPMSolverMultistepScheduler',
    'LCMScheduler': 'DDIMScheduler',
}
WHY = {
    'use_karras_sigmas': "it rounds the network's time, which sampler.spacing.name='karras' does not",
    'use_lu_lambdas': "it rounds the network's time, which sampler.spacing.name='log_snr' does not",
    'use_flow_sigmas': "it cuts the network's time to whole steps; FlowMatchEulerDiscreteScheduler does not",
    'use_dynamic_shifting': 'its pipelines choose the shift; here it is sampler.shift and sampler.shift_at',
    'timestep_spacing': 'its steps then do not end where the next ones begin, or lie between training steps',
}


@dataclasses.dataclass(frozen=True)
class Option:
    """A published option: diffusers' default, and the values that have an equal here, where not all have."""

    default: Any
    accepted: tuple | None = None


def _one_of(*values: Any) -> Option:
    return Option(values[0], values)


_ABSENT, _OFF = _one_of(None), _one_of(False, None)
_FLOW_STEPS = 1000  # the first level of a published flow is 1 / 1000
_SCHEDULE = {
    'num_train_timesteps': Option(1000),
    'beta_start': Option(1e-4),
    'beta_end': Option(2e-2),
    'beta_schedule': _one_of(*BETAS),
    'prediction_type': _one_of(*OUTPUTS),
    'steps_offset': Option(0),
    'trained_betas': _ABSENT,
    'rescale_betas_zero_snr': _OFF,
}
_CHAIN = _SCHEDULE | {
    'clip_sample': Option(True, (False, None)),
    'thresholding': _OFF,
    'timestep_spacing': _one_of('leading', 'trailing'),
}
_LEVELS = {f'use_{kind}_sigmas': _OFF for kind in ('karras', 'exponential', 'beta')}
_LAST = {'final_sigmas_type': _one_of('zero', 'sigma_min')}
_MULTISTEP = (
    _SCHEDULE
    | _LEVELS
    | _LAST
    | {
        'timestep_spacing': _one_of('linspace', 'leading', 'trailing'),
        'lower_order_final': Option(True),
        'thresholding': _OFF,
        'use_flow_sigmas': _OFF,
        'use_dynamic_shifting': _OFF,
    }
)
_UNBOUNDED = Option(-float('inf'), (-float('inf'), None))
OPTIONS = {
    'DDIMScheduler': _CHAIN | {'set_alpha_to_one': Option(True)},
    'DDPMScheduler': _CHAIN | {'variance_type': _one_of(*VARIANCES)},
    'DPMSolverMultistepScheduler': _MULTISTEP
    | {
        'solver_order': _one_of(2, 1),
        'algorithm_type': _one_of(*ALGORITHMS),
        'solver_type': _one_of('midpoint', 'heun'),
        'euler_at_final': Option(False),
        'use_lu_lambdas': _OFF,
        'lambda_min_clipped': _UNBOUNDED,
        'variance_type': _one_of(None, 'learned', 'learned_range'),
    },
    'UniPCMultistepScheduler': _MULTISTEP
    | {
        'solver_order': _one_of(2, 1, 3),
        'solver_type': _one_of('bh2', 'bh1'),
        'predict_x0': Option(True),
        'disable_corrector': _one_of([], None),
        'solver_p': _ABSENT,
    },
    'EulerDiscreteScheduler': _SCHEDULE
    | _LEVELS
    | _LAST
    | {
        'timestep_spacing': Option('linspace', ('leading', 'trailing')),
        'interpolation_type': _one_of('linear'),
        'timestep_type': _one_of('discrete'),
    },
    'FlowMatchEulerDiscreteScheduler': _LEVELS
    | {
        'num_train_timesteps': _one_of(_FLOW_STEPS),
        'shift': Option(1.0),
        'use_dynamic_shifting': _OFF,
        'invert_sigmas': _OFF,
        'shift_terminal': _ABSENT,
        'stochastic_sampling': _OFF,
    },
}


def sections_of(class_name: str, config: Mapping[str, Any]) -> dict[str, Section]:
    """The sections that sample as the published scheduler does."""
    if class_name not in OPTIONS:
        instead = f'; {INSTEAD[class_name]} samples from the same weights' if class_name in INSTEAD else ''
        raise ValueError(
            f'the scheduler {class_name} has no equal here{instead}. There are: {", ".join(OPTIONS)}.'
        )
    options = {name: config.get(name, option.default) for name, option in OPTIONS[class_name].items()}
    for name, option in OPTIONS[class_name].items():
        if option.accepted is not None and options[name] not in option.accepted:
            why = f' ({WHY[name]})' if name in WHY else ''
            raise ValueError(
                f'{name}={options[name]!r} of {class_name} has no equal here{why}; what has: '
                f'{", ".join(map(repr, option.accepted))}.'
            )
    if class_name == 'FlowMatchEulerDiscreteScheduler':
        return _flow_sections(options['shift'])
    return _diffusion_sections(class_name, options)


def _diffusion_sections(class_name: str, options: Mapping[str, Any]) -> dict[str, Section]:
    path = {
        'name': 'vp',
        'betas': BETAS[options['beta_schedule']],
        'train_steps': options['num_train_timesteps'],
        'beta_start': options['beta_start'],
        'beta_end': options['beta_end'],
    }
    prediction = {'output': OUTPUTS[options['prediction_type']], 'time': 'steps'}
    if options.get('variance_type') in ('learned', 'learned_range'):
        prediction['learned_variance'] = True
    placement = options['timestep_spacing']
    spacing = {'name': 'training_steps', 'placement': placement}
    if placement == 'leading' and options['steps_offset']:
        spacing['offset'] = options['steps_offset']
    if placement != 'trailing' and 'Multistep' in class_name:
        spacing['extra'] = True
    if options.get('final_sigmas_type') == 'sigma_min' or options.get('set_alpha_to_one') is False:
        spacing['to_first'] = True
    sampler = {'name': 'diffusion', 'solver': _SOLVERS[class_name](options), 'spacing': spacing}
    return {'path': path, 'prediction': prediction, 'sampler': sampler}


def _dpm_solver(options: Mapping[str, Any]) -> Section:
    onto_data = options['final_sigmas_type'] == 'zero'
    if options['euler_at_final'] and not onto_data:
        raise ValueError(
            "euler_at_final=True has no equal here with final_sigmas_type='sigma_min'; with 'zero' the last "
            'step is of order 1 anyway.'
        )
    if options['algorithm_type'] == 'dpmsolver' and onto_data:
        raise ValueError(
            "algorithm_type='dpmsolver' has no step onto the data; set final_sigmas_type='sigma_min', or "
            "algorithm_type='dpmsolver++'."
        )
    return {
        'name': 'dpm_solver',
        'order': options['solver_order'],
        'form': options['solver_type'],
        **ALGORITHMS[options['algorithm_type']],
        'lower_order_final': options['lower_order_final'],
    }


def _unipc(options: Mapping[str, Any]) -> Section:
    return {
        'name': 'unipc',
        'order': options['solver_order'],
        'variant': options['solver_type'],
        'predict': 'data' if options['predict_x0'] else 'noise',
        'lower_order_final': options['lower_order_final'],
    }


def _ddpm(options: Mapping[str, Any]) -> Section:
    return {'name': 'ddpm', 'variance': VARIANCES[options['variance_type']]}


def _ddim(options: Mapping[str, Any]) -> Section:
    return {'name': 'ddim'}


# Euler's step on x / alpha over sigma / alpha keeps the predicted noise: DDIM's.
_SOLVERS: dict[str, Callable[[Mapping[str, Any]], Section]] = {
    'DDIMScheduler': _ddim,
    'DDPMScheduler': _ddpm,
    'DPMSolverMultistepScheduler': _dpm_solver,
    'UniPCMultistepScheduler': _unipc,
    'EulerDiscreteScheduler': _ddim,
}


def _flow_sections(shift: float) -> dict[str, Section]:
    """Flow matching by Euler: even levels from 1 to the first, that one shifted, all shifted again, then 0.

    A shift is linear in the odds t / (1 - t), so shifts of even levels that end above 0 are, with another
    shift, even levels that end at another last one: the walk of the sampler with `last`.
    """
    low = _shifted(1 / _FLOW_STEPS, shift)
    sampler = {
        'name': 'diffusion',
        'solver': {'name': 'euler'},
        'spacing': {'name': 'uniform'},
        'shift': 1 + (1 - low) * (shift - 1) / (1 + low * (shift - 1)),
        'last': _shifted(low, shift),
    }
    return {
        'path': {'name': 'linear'},
        'prediction': {'output': 'velocity', 'time': 'thousand'},
        'sampler': sampler,
    }


def _shifted(t: float, shift: float) -> float:
    return shift * t / (1 + (shift - 1) * t)


# What the parts take where a section is silent.
DEFAULTS: dict[str, Section] = {
    'path': {
        'name': 'linear',
        'betas': 'linear',
        'train_steps': 1000,
        'beta_start': 1e-4,
        'beta_end': 2e-2,
    },
    'prediction': {'output': 'velocity', 'time': 'thousand'},
    'sampler': {'shift': 1.0, 'shift_at': None, 'begin': None, 'end': None, 'last': None, 'corrector': 0},
    'training_steps': {'placement': 'trailing', 'offset': 0, 'extra': False, 'to_first': False},
    'uniform': {},
    'euler': {},
    'ddim': {'eta': 0.0},
    'ddpm': {'variance': 'fixed_small'},
    'dpm_solver': {
        'order': 2,
        'form': 'midpoint',
        'stochastic': False,
        'predict': 'data',
        'corrector': False,
        'lower_order_final': True,
    },
    'unipc': {
        'order': 2,
        'variant': 'bh2',
        'predict': 'data',
        'corrector': True,
        'lower_order_final': True,
    },
}


def config_of(
    path: Mapping[str, Any], prediction: Mapping[str, Any], sampler: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The published class and config of these sections; what it would read back differently is refused.

    Even steps on a path of training steps are taken for 'trailing' ones, which they are but for rounding.
    """
    given = _filled({'path': path, 'prediction': prediction, 'sampler': sampler})
    class_name, options = _written(given)
    read = _filled(sections_of(class_name, options))
    for section, ours in given.items():
        for name, value in ours.items():
            other = read[section].get(name)
            close = isinstance(value, float) and isinstance(other, float) and math.isclose(value, other)
            if value != other and not close:
                raise ValueError(
                    f'{section}.{name} is {value!r}, which {class_name} cannot say; it would read {other!r}.'
                )
    return class_name, {'_class_name': class_name, **options}


def _filled(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Section]:
    """Flat sections with the defaults of their parts, as far as a scheduler speaks of them."""
    path = DEFAULTS['path'] | dict(sections['path'])
    prediction = DEFAULTS['prediction'] | dict(sections['prediction'])
    sampler = DEFAULTS['sampler'] | dict(sections['sampler'])
    solver, spacing = dict(sampler['solver']), dict(sampler.get('spacing') or {'name': 'uniform'})
    if path['name'] == 'vp' and spacing['name'] == 'uniform':
        spacing = {'name': 'training_steps', 'placement': 'trailing'}
    for part, kind in ((solver, 'solver'), (spacing, 'spacing')):
        if part['name'] not in DEFAULTS:
            raise ValueError(f"sampler.{kind}.name is '{part['name']}', which no published scheduler has.")
    spacing = DEFAULTS[spacing['name']] | spacing
    spacing.pop('max_steps', None)  # how many steps may be asked for
    if spacing.get('placement') == 'trailing':
        spacing.pop('extra')  # changes nothing there
    return {
        'path': path,
        'prediction': {name: prediction[name] for name in DEFAULTS['prediction']},
        'sampler': {name: sampler[name] for name in DEFAULTS['sampler']},
        'sampler.solver': DEFAULTS[solver['name']] | solver,
        'sampler.spacing': spacing,
    }


def _written(given: Mapping[str, Section]) -> tuple[str, dict[str, Any]]:
    """The nearest published scheduler."""
    path, solver, spacing = given['path'], given['sampler.solver'], given['sampler.spacing']
    if solver['name'] == 'euler':
        return 'FlowMatchEulerDiscreteScheduler', _flow_options(given['sampler'])
    if path['name'] != 'vp':
        raise ValueError(
            f"path.name is '{path['name']}' with the solver '{solver['name']}'; published are 'vp', and "
            "'linear' with 'euler'."
        )
    options = {
        'num_train_timesteps': path['train_steps'],
        'beta_start': path['beta_start'],
        'beta_end': path['beta_end'],
        'beta_schedule': _key(BETAS, path['betas'], 'path.betas'),
        'prediction_type': _key(OUTPUTS, given['prediction']['output'], 'prediction.output'),
        'timestep_spacing': spacing.get('placement'),
        'steps_offset': spacing.get('offset'),
    }
    if solver['name'] == 'ddim':
        own = {'set_alpha_to_one': not spacing.get('to_first'), 'clip_sample': False}
        return 'DDIMScheduler', options | own
    if solver['name'] == 'ddpm':
        own = {
            'variance_type': _key(VARIANCES, solver['variance'], 'sampler.solver.variance'),
            'clip_sample': False,
        }
        return 'DDPMScheduler', options | own
    options |= {
        'solver_order': solver['order'],
        'lower_order_final': solver['lower_order_final'],
        'final_sigmas_type': 'sigma_min' if spacing.get('to_first') else 'zero',
    }
    if solver['name'] == 'unipc':
        own = {'solver_type': solver['variant'], 'predict_x0': solver['predict'] == 'data'}
        return 'UniPCMultistepScheduler', options | own
    algorithm = {name: solver[name] for name in ('predict', 'stochastic')}
    own = {'solver_type': solver['form'], 'algorithm_type': _key(ALGORITHMS, algorithm, 'sampler.solver')}
    return 'DPMSolverMultistepScheduler', options | own


def _flow_options(sampler: Section) -> dict[str, Any]:
    last = sampler['last']
    if not last:
        walked = _flow_sections(sampler['shift'])['sampler']
        raise ValueError(
            'FlowMatchEulerDiscreteScheduler walks to a level of its own before it goes to the data: set '
            f'sampler.last={walked["last"]:.6g} and sampler.shift={walked["shift"]:.6g}, its equals at '
            f'shift={sampler["shift"]}.'
        )
    odds = (_FLOW_STEPS - 1) * last / (1 - last)  # the first level's odds times the square of the shift
    return {'num_train_timesteps': _FLOW_STEPS, 'shift': math.sqrt(odds)}


def _key(table: Mapping[str, Any], value: Any, where: str) -> str:
    """The first published name of a value of ours."""
    if value not in table.values():
        raise ValueError(
            f'{where} is {value!r}; published schedulers have {", ".join(map(repr, table.values()))}.'
        )
    return next(name for name, ours in table.items() if ours == value)
