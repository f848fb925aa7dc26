"""Writes stochastic.npz: walks of SiT's SDE sampler and of EDM's stochastic one, by the authors' code.

Needs torch and checkouts of willisma/SiT and NVlabs/edm. From the repository's root:
JAXGEN_SIT=... JAXGEN_EDM=... PYTHONPATH=tests python tests/golden/make_stochastic.py
"""

import os
import pathlib
import sys
import types
from typing import Any
from unittest import mock

import numpy as np
from golden import seeded

STEPS = 6
SHAPE = (2, 4)
# path, prediction, diffusion, norm, method, last step
SIT = (
    *(
        ('Linear', 'velocity', form, norm, 'Euler', 'Mean')
        for form, norm in (
            ('constant', 1.0),
            ('SBDM', 1.0),
            ('sigma', 0.7),
            ('linear', 1.0),
            ('decreasing', 0.5),
            ('inccreasing-decreasing', 1.0),
        )
    ),
    ('Linear', 'noise', 'SBDM', 1.0, 'Euler', 'Tweedie'),
    ('Linear', 'score', 'sigma', 1.0, 'Heun', 'Mean'),
    ('GVP', 'velocity', 'SBDM', 1.0, 'Heun', 'Euler'),
    ('VP', 'velocity', 'SBDM', 0.8, 'Euler', 'Tweedie'),
    ('VP', 'score', 'constant', 1.0, 'Heun', None),
)
# churn and its bounds, the noise's scale
EDM = ((0.0, 0.0, float('inf'), 1.0), (2.0, 0.05, 50.0, 1.003), (40.0, 0.0, 30.0, 1.0))


def name(case: tuple) -> str:
    return '_'.join(map(str, case))


def start() -> np.ndarray:
    """Noise to start from."""
    return seeded.normal('stochastic start', SHAPE).astype(np.float64)


def noise(step: int) -> np.ndarray:
    """The noise of a step."""
    return seeded.normal(f'stochastic noise {step}', SHAPE).astype(np.float64)


def network(x: Any, t: Any, sin: Any, weight: Any) -> Any:
    """Something smooth of x and t, [B]."""
    return sin(x @ weight / (1 + t[:, None]) + 2 * t[:, None])


def weight() -> np.ndarray:
    return seeded.normal('stochastic weight', (SHAPE[1], SHAPE[1])).astype(np.float64)


def sit(case: tuple) -> np.ndarray:
    import torch
    from transport import Sampler, create_transport

    path, prediction, form, norm, method, last_step = case
    transport = create_transport(path, prediction)
    transport.sample_eps = 1e-3  # theirs is 0 for a velocity, where SBDM's coefficient has no limit
    sample = Sampler(transport).sample_sde(
        sampling_method=method,
        diffusion_form=form,
        diffusion_norm=torch.tensor(norm),
        last_step=last_step,
        num_steps=STEPS,
    )
    steps = iter(range(STEPS))
    with mock.patch.object(torch, 'randn', lambda shape: torch.tensor(noise(next(steps)))):
        walk = sample(torch.tensor(start()), lambda x, t: network(x, t, torch.sin, torch.tensor(weight())))
    return walk[-1].numpy()


def edm(case: tuple) -> np.ndarray:
    import torch
    from generate import edm_sampler

    class Net:
        sigma_min, sigma_max = 0.0, float('inf')

        def round_sigma(self, sigma: Any) -> Any:
            return sigma

        def __call__(self, x: Any, sigma: Any, labels: None) -> Any:
            return network(x, sigma.expand(len(x)), torch.sin, torch.tensor(weight()))

    steps = iter(range(STEPS))
    churn, low, high, scale = case
    end = edm_sampler(
        Net(),
        torch.tensor(start()),
        randn_like=lambda x: torch.tensor(noise(next(steps))),
        num_steps=STEPS,
        S_churn=churn,
        S_min=low,
        S_max=high,
        S_noise=scale,
    )
    return end.numpy()


def main() -> None:
    sys.modules['torchdiffeq'] = types.SimpleNamespace(odeint=None)  # of SiT's flow alone
    sys.path[:0] = os.environ['JAXGEN_SIT'], os.environ['JAXGEN_EDM']
    arrays = {name(case): sit(case) for case in SIT} | {name(case): edm(case) for case in EDM}
    np.savez_compressed(pathlib.Path(__file__).with_name('stochastic.npz'), **arrays)


if __name__ == '__main__':
    main()
