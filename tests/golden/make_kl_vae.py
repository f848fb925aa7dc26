"""AutoencoderKL's golden file: diffusers' results on seeded weights, and the cases themselves.

Needs torch and diffusers. From the repository's root: PYTHONPATH=.:tests python tests/golden/make_kl_vae.py
"""

import pathlib
from typing import Any

import jax
import numpy as np
from golden.seeded import normal, weights

from jaxgen.tokenizers.kl_vae import AutoencoderKL
from jaxgen.tokenizers.kl_vae import build as build_kl_vae
from jaxgen.weights import kl_vae as family
from jaxgen.weights.names import NameMap, to_jaxgen, to_published

TINY = {'widths': (8, 8, 16), 'blocks': 1, 'groups': 4, 'attention': (1,), 'sample_size': 32}
FULL = {'widths': (128, 256, 512, 512), 'channels': 16, 'quant_conv': False, 'post_quant_conv': False}
SIDES = (24, 32)
TILED_SIDES = (52, 68)  # tiles of six shapes
# Of the gradients, these are stored.
STORED = ('conv_in.weight', 'attentions.0.to_q.weight', 'conv_norm_out.bias', 'quant_conv.weight')


def network(settings: dict) -> AutoencoderKL:
    """The network of a case."""
    return build_kl_vae(256, **settings).network


def parameters(network: AutoencoderKL, table: NameMap) -> dict[str, Any]:
    """Seeded parameters, the same whenever and wherever they are made."""
    like = jax.eval_shape(network.init, jax.random.key(0), *family.inputs(network))['params']
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), like)
    return to_jaxgen(table, weights({name: a.shape for name, a in to_published(table, hollow).items()}), like)


def image(network: AutoencoderKL, sides: tuple[int, int] = SIDES, batch: int = 2) -> np.ndarray:
    """Images, not of uint8."""
    return normal('image', (batch, *sides, 3))


def latents(network: AutoencoderKL, sides: tuple[int, int] = SIDES, batch: int = 2) -> np.ndarray:
    """Latents as the decoder takes them, of images of these sides."""
    return normal('latents', (batch, *(side // network.factor for side in sides), network.channels))


def cotangents(network: AutoencoderKL) -> tuple[np.ndarray, np.ndarray]:
    """What moments and pixels are multiplied with for the gradients."""
    return (
        normal('moments', (*latents(network).shape[:3], 2 * network.channels)),
        normal('pixels', image(network).shape),
    )


def reference(network: AutoencoderKL, params: dict[str, Any]) -> Any:
    """diffusers' network with the same parameters."""
    import torch
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_config(family.to_config(network)).eval()
    published = to_published(family.layouts(network)['diffusers'], params)
    model.load_state_dict({name: torch.tensor(np.asarray(array)) for name, array in published.items()})
    return model


def run_reference(model: Any, network: AutoencoderKL) -> dict[str, np.ndarray]:
    """Moments, pixels and the gradients by both inputs and by all weights, by their published names."""
    x, z = torch_map(image(network)).requires_grad_(), torch_map(latents(network)).requires_grad_()
    moments, pixels = model.encode(x).latent_dist.parameters, model.decode(z).sample
    of_moments, of_pixels = map(torch_map, cotangents(network))
    ((moments * of_moments).sum() + (pixels * of_pixels).sum()).backward()
    results = {'moments': moments, 'pixels': pixels, 'by_x': x.grad, 'by_z': z.grad}
    results = {name: numpy_map(value) for name, value in results.items()}
    return results | {name: one.grad.numpy() for name, one in model.named_parameters()}


def run_tiled_reference(model: Any, network: AutoencoderKL) -> dict[str, np.ndarray]:
    """Moments and pixels by tiles."""
    import torch

    model.enable_tiling()
    x, z = (torch_map(make(network, TILED_SIDES, 1)) for make in (image, latents))
    with torch.no_grad():
        moments, pixels = model.encode(x).latent_dist.parameters, model.decode(z).sample
    model.disable_tiling()
    return {'tiled_moments': numpy_map(moments), 'tiled_pixels': numpy_map(pixels)}


def torch_map(x_BHWC: np.ndarray) -> Any:
    """A map as torch has it."""
    import torch

    return torch.from_numpy(x_BHWC.transpose(0, 3, 1, 2).copy())


def numpy_map(x_BCHW: Any) -> np.ndarray:
    """The inverse of torch_map."""
    return x_BCHW.detach().numpy().transpose(0, 2, 3, 1)


def main() -> None:
    ours = network(TINY)
    model = reference(ours, parameters(ours, family.layouts(ours)['diffusers']))
    results = run_reference(model, ours)
    kept = {name: a for name, a in results.items() if '.' not in name or name.endswith(STORED)}
    kept |= run_tiled_reference(model, ours)
    np.savez_compressed(pathlib.Path(__file__).with_name('kl_vae.npz'), **kept)


if __name__ == '__main__':
    main()
