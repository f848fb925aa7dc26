"""What public samplers do with a fixed smooth network: diffusers' schedulers, and DiT's authors' p_sample.

A case names a scheduler with its settings and the solver, path and prediction of ours that shall walk alike.
JAXGEN_DIT names a checkout of facebookresearch/DiT.
"""

import dataclasses
import importlib
import os
import sys
from typing import Any
from unittest import mock

import numpy as np
from golden import seeded

SHAPE = (2, 3)
BETAS = {'linear': 'linear', 'scaled_linear': 'scaled_linear', 'cosine': 'squaredcos_cap_v2'}
PREDICTIONS = {'noise': 'epsilon', 'data': 'sample', 'v': 'v_prediction', 'velocity': 'flow_prediction'}


@dataclasses.dataclass(frozen=True)
class Case:
    """`solver` is ours with its settings; betas None is the linear flow path."""

    scheduler: str
    settings: tuple[tuple[str, Any], ...]
    solver: tuple[str, tuple[tuple[str, Any], ...]]
    steps: int
    betas: str | None = 'linear'
    prediction: str = 'noise'
    learned_variance: bool = False
    eta: float = 0.0


def case(scheduler: str, settings: dict, solver: str, ours: dict, steps: int, **rest: Any) -> Case:
    """A case from plain dictionaries."""
    return Case(scheduler, tuple(settings.items()), (solver, tuple(ours.items())), steps, **rest)


def cases() -> dict[str, Case]:
    """All of diffusers' cases by name."""
    found = {}
    for betas, prediction in (('linear', 'noise'), ('scaled_linear', 'data'), ('cosine', 'v')):
        rest = {'betas': betas, 'prediction': prediction}
        for steps in (5, 10, 20):
            for name, one in _on_schedule(steps, rest).items():
                found[f'{name}/{betas}/{steps}'] = one
    for steps in (5, 20):
        for name, one in _variants(steps).items():
            found[f'{name}/{steps}'] = one
    return found


def _on_schedule(steps: int, rest: dict) -> dict[str, Case]:
    found = {'ddpm': case('DDPMScheduler', {}, 'ddpm', {}, steps, **rest)}
    for eta in (0.0, 1.0):
        found[f'ddim_eta{eta:.0f}'] = case(
            'DDIMScheduler', {'timestep_spacing': 'trailing'}, 'ddim', {'eta': eta}, steps, eta=eta, **rest
        )
    for order in (1, 2):
        for form in ('', 'sde_'):
            settings = {'algorithm_type': f'{form[:3]}-dpmsolver++' if form else 'dpmsolver++'}
            ours = {'order': order, 'stochastic': bool(form)}
            found[f'{form}dpm{order}'] = _multistep('DPMSolver', settings, 'dpm_solver', ours, steps, rest)
    for order in (1, 2, 3):
        for variant in ('bh1', 'bh2') if rest['betas'] == 'linear' else ('bh2',):
            ours = {'order': order, 'variant': variant}
            found[f'unipc{order}_{variant}'] = _multistep(
                'UniPC', _unipc(variant), 'unipc', ours, steps, rest
            )
    return found


def _unipc(variant: str) -> dict:
    # With a last sigma of zero the scheduler's bh1 is infinity times zero.
    return {'solver_type': variant, 'final_sigmas_type': 'sigma_min' if variant == 'bh1' else 'zero'}


def _multistep(family: str, settings: dict, solver: str, ours: dict, steps: int, rest: dict) -> Case:
    settings = {'solver_order': ours['order'], **settings}
    return case(f'{family}MultistepScheduler', settings, solver, ours, steps, **rest)


def _variants(steps: int) -> dict[str, Case]:
    flow = {'betas': None, 'prediction': 'velocity'}
    on_flow, to_first = {'use_flow_sigmas': True}, {'final_sigmas_type': 'sigma_min'}
    found = {}
    for name, theirs, variance in (
        ('ddpm_large', 'fixed_large', 'fixed_large'),
        ('ddpm_learned', 'learned_range', 'learned'),
    ):
        learned = {'learned_variance': variance == 'learned'}
        settings, ours = {'variance_type': theirs}, {'variance': variance}
        found[name] = case('DDPMScheduler', settings, 'ddpm', ours, steps, **learned)

    def dpm(settings: dict, ours: dict, rest: dict | None = None) -> Case:
        return _multistep('DPMSolver', settings, 'dpm_solver', {'order': 2, **ours}, steps, rest or {})

    def unipc(settings: dict, ours: dict, rest: dict | None = None) -> Case:
        return _multistep('UniPC', settings, 'unipc', ours, steps, rest or {})

    stochastic = {'algorithm_type': 'sde-dpmsolver++'}
    found |= {
        'dpm2_heun': dpm({'solver_type': 'heun'}, {'form': 'heun'}),
        'sde_dpm2_heun': dpm({'solver_type': 'heun', **stochastic}, {'form': 'heun', 'stochastic': True}),
        'dpm2_sigma_min': dpm(to_first, {}),
        'dpm2_not_lowered': dpm(to_first | {'lower_order_final': False}, {'lower_order_final': False}),
        'dpm2_noise': dpm(to_first | {'algorithm_type': 'dpmsolver'}, {'predict': 'noise'}),
        'dpm2_flow': dpm(on_flow, {}, flow),
        'sde_dpm2_flow': dpm(on_flow | stochastic, {'stochastic': True}, flow),
        'unipc2_noise': unipc(to_first | {'predict_x0': False}, {'order': 2, 'predict': 'noise'}),
        'unipc3_not_lowered': unipc(
            to_first | {'lower_order_final': False}, {'order': 3, 'lower_order_final': False}
        ),
    }
    for order in (1, 2, 3):
        found[f'unipc{order}_flow'] = unipc(on_flow | {'flow_shift': 3.0}, {'order': order}, flow)
    # UniC around DPM-Solver++: with the data as output, the inner scheduler reads it as ours does.
    predictor = {'solver_p': 'DPMSolverMultistepScheduler', 'lower_order_final': False, **to_first}
    found['dpm2_corrected'] = dataclasses.replace(
        unipc(predictor, {'order': 2}, {'prediction': 'data'}),
        solver=('dpm_solver', (('order', 2), ('corrector', True), ('lower_order_final', False))),
    )
    return found


def start() -> np.ndarray:
    """Where every walk begins."""
    return seeded.normal('start', SHAPE).astype(np.float64)


def noise(step: int) -> np.ndarray:
    """The fresh noise of a step."""
    return seeded.normal(f'noise {step}', SHAPE).astype(np.float64)


def network(x: Any, t: Any, learned_variance: bool, numbers: Any = np) -> Any:
    """A smooth function of x and t, by NumPy or by `numbers=jax.numpy`."""
    weight = seeded.normal('weight', (SHAPE[1], SHAPE[1])).astype(np.float64) / 2
    output = numbers.sin(x @ weight + 3 * t)
    if not learned_variance:
        return output
    return numbers.concatenate([output, 1.2 * numbers.cos(x @ weight.T)], -1)


def _scheduler(one: Case) -> Any:
    diffusers = importlib.import_module('diffusers')
    settings = dict(one.settings) | {'prediction_type': PREDICTIONS[one.prediction]}
    if one.betas:
        settings['beta_schedule'] = BETAS[one.betas]
    if one.scheduler in ('DDPMScheduler', 'DDIMScheduler'):
        settings['clip_sample'] = False
    if settings.get('solver_p'):
        inner = {name: settings[name] for name in ('prediction_type', 'beta_schedule', 'solver_order')}
        inner |= {name: settings[name] for name in ('lower_order_final', 'final_sigmas_type')}
        settings['solver_p'] = _ready(getattr(diffusers, settings['solver_p'])(**inner), one.steps)
    return _ready(getattr(diffusers, one.scheduler)(**settings), one.steps)


def _ready(scheduler: Any, steps: int) -> Any:
    # In float32 the cosine schedule's first step takes the root of a rounding error.
    scheduler.alphas_cumprod = (1 - scheduler.betas.double()).cumprod(0)
    scheduler.set_timesteps(steps)
    return scheduler


def _times(one: Case, scheduler: Any) -> np.ndarray:
    """The path's times of the scheduler's steps and of its end."""
    if one.betas is None:
        return scheduler.sigmas.double().numpy()
    times = (scheduler.timesteps.double().numpy() + 1) / 1000
    to_first = dict(one.settings).get('final_sigmas_type') == 'sigma_min'
    return np.append(times, 1 / 1000 if to_first else 0)


def run(one: Case) -> tuple[np.ndarray, np.ndarray]:
    """Times [steps + 1] and the walk [steps + 1, *SHAPE] of diffusers' scheduler."""
    import torch

    scheduler = _scheduler(one)
    times, x = _times(one, scheduler), torch.tensor(start())
    walk = [x.numpy()]
    for i, step in enumerate(scheduler.timesteps):
        out, fresh = torch.tensor(network(x.numpy(), times[i], one.learned_variance)), torch.tensor(noise(i))
        options = {}
        if one.scheduler == 'DDIMScheduler':
            options = {'eta': one.eta, 'variance_noise': fresh if one.eta else None}
        elif 'sde' in dict(one.settings).get('algorithm_type', ''):
            options = {'variance_noise': fresh}
        with mock.patch('diffusers.schedulers.scheduling_ddpm.randn_tensor', lambda *a, **k: fresh):  # noqa: B023
            x = scheduler.step(out, step, x, **options).prev_sample
        walk.append(x.numpy())
    return times, np.stack(walk)


def run_dit(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of DiT's authors' ancestral sampler with learned variance."""
    import torch

    sys.path.insert(0, os.environ['JAXGEN_DIT'])
    try:
        chain = importlib.import_module('diffusion').create_diffusion(str(steps))
    finally:
        sys.path.pop(0)

    def model(x: Any, t: Any) -> Any:
        return torch.tensor(network(x.numpy(), (t.numpy()[:, None] + 1) / 1000, True))

    x = torch.tensor(start())
    walk = [x.numpy()]
    for i in range(steps):
        t = torch.full(SHAPE[:1], steps - 1 - i)
        with mock.patch('torch.randn_like', lambda like: torch.tensor(noise(i))):  # noqa: B023
            x = chain.p_sample(model, x, t, clip_denoised=False)['sample']
        walk.append(x.numpy())
    return np.append((np.array(sorted(chain.use_timesteps))[::-1] + 1) / 1000, 0), np.stack(walk)


def packed(times: np.ndarray, walk: np.ndarray) -> np.ndarray:
    """Both in one array, the times in its first column."""
    return np.concatenate([times[:, None], walk.reshape(len(walk), -1)], 1).astype(np.float32)
