"""Writes sit_loss.npz: the losses of the authors' SiT transport on seeded inputs, and one gradient.

Needs torch and a checkout of willisma/SiT. From the repository's root:
JAXGEN_SIT=... PYTHONPATH=tests python tests/golden/make_sit_loss.py
"""

import itertools
import os
import pathlib
import sys
import types
from unittest import mock

import numpy as np
from golden import seeded

PATHS = ('Linear', 'GVP', 'VP')
PREDICTIONS = ('velocity', 'score', 'noise')
WEIGHTINGS = ('none', 'velocity', 'likelihood')
CASES = tuple(itertools.product(PATHS, PREDICTIONS, WEIGHTINGS))
UNIFORM = np.array([0.0, 0.03, 0.2, 0.5, 0.75, 0.96, 0.999])  # their draws, from noise to data
SHAPE = (len(UNIFORM), 4, 4, 3)


def inputs() -> dict[str, np.ndarray]:
    """Latents, noise and a network's output."""
    return {name: seeded.normal(f'sit {name}', SHAPE) for name in ('data', 'noise', 'output')}


def main() -> None:
    import torch

    sys.modules['torchdiffeq'] = types.SimpleNamespace(odeint=None)  # of their sampler alone
    sys.path.insert(0, os.environ['JAXGEN_SIT'])
    from transport import create_transport

    data, noise, output = (torch.tensor(a).double() for a in inputs().values())
    output.requires_grad_()
    arrays = {}
    draws = {'randn_like': lambda like: noise, 'rand': lambda shape: torch.tensor(UNIFORM)}
    for path, prediction, weighting in CASES:
        transport = create_transport(path, prediction, weighting)
        with mock.patch.multiple(torch, **draws):
            loss = transport.training_losses(lambda x, t: output, data)['loss']
        arrays['_'.join((path, prediction, weighting))] = loss.detach().numpy()
    loss.sum().backward()
    arrays['by_output'] = output.grad.numpy()
    np.savez_compressed(pathlib.Path(__file__).with_name('sit_loss.npz'), **arrays)


if __name__ == '__main__':
    main()
