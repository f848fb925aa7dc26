"""Writes dit_loss.npz: the losses and gradients of the authors' DiT training code on seeded inputs.

Needs torch and a checkout of facebookresearch/DiT. From the repository's root:
JAXGEN_DIT=... PYTHONPATH=tests python tests/golden/make_dit_loss.py
"""

import os
import pathlib
import sys

import numpy as np
from golden import seeded

STEPS = np.array([0, 0, 1, 2, 250, 731, 999])
SHAPE = (len(STEPS), 4, 4, 3)


def inputs() -> dict[str, np.ndarray]:
    """Pixels in [-1, 1], some of them at the ends; noise; a network's output, nearer to it at early steps."""
    data = np.clip(seeded.normal('data', SHAPE), -1, 1)
    noise = seeded.normal('noise', SHAPE)
    error = np.where(STEPS < 10, np.float32(0.02), 1)[:, None, None, None]
    mean = noise + error * seeded.normal('mean', SHAPE)
    output = np.concatenate([mean, seeded.normal('variance', SHAPE)], -1)
    return {'data': data, 'noise': noise, 'output': output}


def main() -> None:
    import torch

    sys.path.insert(0, os.environ['JAXGEN_DIT'])
    from diffusion import create_diffusion

    data, noise, output = (torch.tensor(a).movedim(-1, 1) for a in inputs().values())
    output.requires_grad_()
    terms = create_diffusion('').training_losses(lambda x, t: output, data, torch.tensor(STEPS), noise=noise)
    terms['loss'].sum().backward()
    arrays = {name: terms[name].detach().numpy() for name in ('mse', 'vb', 'loss')}
    arrays['by_output'] = output.grad.movedim(1, -1).numpy()
    np.savez_compressed(pathlib.Path(__file__).with_name('dit_loss.npz'), **arrays)


if __name__ == '__main__':
    main()
