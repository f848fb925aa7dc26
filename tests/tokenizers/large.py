"""One large image decoded at Stable Diffusion's widths on seeded weights, in a process of its own.

`PYTHONPATH=.:tests python tests/tokenizers/large.py ours|diffusers whole|tiled|exact SIDE FILE` writes the
pixels to FILE (.npy) and prints the seconds and the peak of the process's memory in bytes.
"""

import json
import pathlib
import sys
import time

import numpy as np
from golden import make_kl_vae as cases

from jaxgen.tokenizers import kl_vae
from jaxgen.weights import kl_vae as family

SETTINGS = {'widths': (128, 256, 512, 512), 'sample_size': 512, 'strips': 32}


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    status = pathlib.Path('/proc/self/status').read_text()
    return 1024 * int(status.partition('VmHWM:')[2].split()[0])


def ours(decoding: str, side: int) -> tuple[np.ndarray, float]:
    import jax

    tokenizer = kl_vae.build(side, **SETTINGS, decoding=decoding)
    network = tokenizer.network
    params = jax.device_put(cases.parameters(network, family.layouts(network)['diffusers']))
    z = cases.latents(network, (side, side), 1)
    start = time.monotonic()
    pixels = np.asarray(jax.jit(tokenizer.pixels)({'tokenizer': params}, network.normalised(z)))
    return pixels, time.monotonic() - start


def diffusers(decoding: str, side: int) -> tuple[np.ndarray, float]:
    import torch

    network = kl_vae.build(side, **SETTINGS).network
    model = cases.reference(network, cases.parameters(network, family.layouts(network)['diffusers']))
    if decoding == 'tiled':
        model.enable_tiling()
    z = cases.torch_map(cases.latents(network, (side, side), 1))
    start = time.monotonic()
    with torch.no_grad():
        pixels = model.decode(z).sample
    return cases.numpy_map(pixels), time.monotonic() - start


def main(who: str, decoding: str, side: str, file: str) -> None:
    pixels, seconds = {'ours': ours, 'diffusers': diffusers}[who](decoding, int(side))
    np.save(file, pixels)
    print(json.dumps({'seconds': round(seconds, 1), 'peak': peak()}))


if __name__ == '__main__':
    main(*sys.argv[1:])
