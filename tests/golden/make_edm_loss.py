"""Writes edm_loss.npz: EDM's loss through its preconditioning, by the authors' code on seeded inputs.

Needs torch and a checkout of NVlabs/edm. From the repository's root:
JAXGEN_EDM=... PYTHONPATH=tests python tests/golden/make_edm_loss.py
"""

import os
import pathlib
import sys
import types
from unittest import mock

import numpy as np
from golden import seeded

NORMAL = np.float32([-3.0, -1.2, -0.3, 0.0, 0.8, 1.7, 3.2])  # the draws behind log(sigma)
SHAPE = (len(NORMAL), 4, 4, 3)


def inputs() -> dict[str, np.ndarray]:
    """Pictures, unit noise and the inner network's output."""
    arrays = {name: seeded.normal(f'edm {name}', SHAPE) for name in ('data', 'noise', 'output')}
    return {**arrays, 'data': 0.5 * arrays['data']}


def main() -> None:
    import torch

    sys.path.insert(0, os.environ['JAXGEN_EDM'])
    from training import loss, networks

    data, noise, output = (torch.tensor(a) for a in inputs().values())
    output.requires_grad_()
    seen = {}

    def inner(x: torch.Tensor, noise_level: torch.Tensor, class_labels: None) -> torch.Tensor:
        seen.update(x=x, noise_level=noise_level)
        return output

    settings = types.SimpleNamespace(model=inner, sigma_data=0.5, label_dim=0, use_fp16=False)

    def preconditioned(x: torch.Tensor, sigma: torch.Tensor, labels: None, augment_labels: None):
        return networks.EDMPrecond.forward(settings, x, sigma, labels)

    draws = {
        'randn': lambda shape, device: torch.tensor(NORMAL).reshape(shape),
        'randn_like': lambda like: noise,
    }
    with mock.patch.multiple(torch, **draws):
        losses = loss.EDMLoss()(preconditioned, data)
    losses.mean(dim=(1, 2, 3)).sum().backward()
    arrays = {'loss': losses.detach().mean(dim=(1, 2, 3)), 'by_output': output.grad, **seen}
    numbers = {name: array.numpy() for name, array in arrays.items()}
    np.savez_compressed(pathlib.Path(__file__).with_name('edm_loss.npz'), **numbers)


if __name__ == '__main__':
    main()
