"""Published scheduler configs, and where diffusers' own schedulers lead with a fixed smooth network."""

import importlib
from typing import Any
from unittest import mock

import jax
import numpy as np
from golden import seeded

from jaxgen import keys as random

SHAPE = (2, 2, 3)  # of one picture
STEPS = (20, 50)

# PixArt-alpha at 256, 512 and 1024; Sigma's folders say the defaults of a later version too.
_PIXART = {
    'algorithm_type': 'dpmsolver++',
    'beta_end': 0.02,
    'beta_schedule': 'linear',
    'beta_start': 0.0001,
    'dynamic_thresholding_ratio': 0.995,
    'euler_at_final': False,
    'lambda_min_clipped': float('-inf'),
    'lower_order_final': True,
    'num_train_timesteps': 1000,
    'prediction_type': 'epsilon',
    'sample_max_value': 1.0,
    'solver_order': 2,
    'solver_type': 'midpoint',
    'steps_offset': 0,
    'thresholding': False,
    'timestep_spacing': 'linspace',
    'trained_betas': None,
    'use_karras_sigmas': False,
    'use_lu_lambdas': False,
    'variance_type': None,
}
_SIGMA = _PIXART | {'final_sigmas_type': 'zero', 'use_exponential_sigmas': False, 'use_flow_sigmas': False}
# DiT-XL/2 at 256 and 512.
_DIT = {
    'beta_end': 0.02,
    'beta_schedule': 'linear',
    'beta_start': 0.0001,
    'clip_sample': False,
    'num_train_timesteps': 1000,
    'prediction_type': 'epsilon',
    'set_alpha_to_one': True,
    'steps_offset': 0,
    'trained_betas': None,
}
_SCALED = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear'}
_SD = _SCALED | {'steps_offset': 1, 'timestep_spacing': 'leading'}
_DPM, _UNIPC, _CLEAN = 'DPMSolverMultistepScheduler', 'UniPCMultistepScheduler', {'clip_sample': False}
_TO_FIRST = {'final_sigmas_type': 'sigma_min'}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    'pixart_alpha': (_DPM, _PIXART),
    'pixart_sigma': (_DPM, _SIGMA),
    'dit': ('DDIMScheduler', _DIT),
    'sd_ddim': ('DDIMScheduler', _SD | _CLEAN | {'set_alpha_to_one': False}),
    'sd_dpm': (_DPM, _SD),
    'sd_euler': ('EulerDiscreteScheduler', _SD | {'interpolation_type': 'linear'}),
    'dpm_noise': (_DPM, {'algorithm_type': 'dpmsolver', 'solver_type': 'heun', **_TO_FIRST}),
    'dpm_sde': (_DPM, {'algorithm_type': 'sde-dpmsolver++', 'timestep_spacing': 'trailing'}),
    'dpm_data': (_DPM, {'prediction_type': 'sample', 'solver_order': 1, 'lower_order_final': False}),
    'unipc': (_UNIPC, {'solver_order': 3, 'beta_schedule': 'squaredcos_cap_v2'}),
    'unipc_v': (_UNIPC, _SD | {'prediction_type': 'v_prediction', 'predict_x0': False, **_TO_FIRST}),
    'ddpm': ('DDPMScheduler', _CLEAN | {'variance_type': 'learned_range'}),
    'ddpm_large': ('DDPMScheduler', _CLEAN | {'variance_type': 'fixed_large'}),
    'flow': ('FlowMatchEulerDiscreteScheduler', {}),
    'flow_shifted': ('FlowMatchEulerDiscreteScheduler', {'shift': 3.0}),
}


def keys() -> jax.Array:
    """One key a picture."""
    return jax.random.split(jax.random.key(0), 2)


def noises(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """What our sampler draws of them: the start, and the fresh noise of every step."""
    start, own = random.fold(keys(), 'noise'), random.fold(keys(), 'solver')
    drawn = [start, *(random.split_each(own, i) for i in range(steps))]
    start, *fresh = (np.asarray(random.draw(jax.random.normal, each, SHAPE)) for each in drawn)
    return start, np.stack(fresh)


def network(x: Any, t: Any, learned_variance: bool, numbers: Any = np) -> Any:
    """A smooth function of x [B, H, W, C] and of what the network is told of the time, [B]."""
    weight = seeded.normal('scheduler weight', (SHAPE[-1], SHAPE[-1])) / 2
    output = numbers.sin(x @ weight + 3 * t.reshape(-1, 1, 1, 1) / 1000)
    if not learned_variance:
        return output
    return numbers.concatenate([output, numbers.cos(x @ weight.T)], -1)


def run(class_name: str, config: dict, steps: int, start: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """Where the scheduler leads from `start` [B, H, W, C]; `fresh` [steps, B, H, W, C] is its noise.

    Ours begins with noise of the level sigma(t), the pipelines with level 1. Scaled-linear betas leave some
    of the data at the end, so that the two differ (by 0.2%); there the start gets our level.
    """
    import torch

    scheduler = getattr(importlib.import_module('diffusers'), class_name).from_config(config)
    scheduler.set_timesteps(steps)
    scale = scheduler.init_noise_sigma if hasattr(scheduler, 'init_noise_sigma') else 1.0
    if config.get('beta_schedule') == 'scaled_linear':
        scale = scale * (1 - scheduler.alphas_cumprod[int(scheduler.timesteps[0])]) ** 0.5
    x = torch.tensor(start.transpose(0, 3, 1, 2)) * scale
    learned = config.get('variance_type') == 'learned_range'
    for i, step in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, step) if hasattr(scheduler, 'scale_model_input') else x
        out = network(seen.permute(0, 2, 3, 1).numpy(), np.full(len(x), float(step)), learned)
        out = torch.tensor(out.transpose(0, 3, 1, 2).astype(np.float32))
        noise = torch.tensor(fresh[i].transpose(0, 3, 1, 2))
        with (
            mock.patch('diffusers.schedulers.scheduling_ddpm.randn_tensor', lambda *a, **k: noise),  # noqa: B023
            mock.patch(
                'diffusers.schedulers.scheduling_dpmsolver_multistep.randn_tensor',
                lambda *a, **k: noise,  # noqa: B023
            ),
        ):
            x = scheduler.step(out, step, x).prev_sample
    return x.permute(0, 2, 3, 1).numpy()
