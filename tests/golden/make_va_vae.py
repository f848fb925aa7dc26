"""VA-VAE's golden file: the authors' results on seeded weights, and the cases themselves.

Needs torch, and in JAXGEN_LIGHTNINGDIT a checkout of hustvl/LightningDiT. From the repository's root:
PYTHONPATH=.:tests python tests/golden/make_va_vae.py
"""

import importlib.util
import os
import pathlib
from typing import Any
from unittest import mock

import jax
import numpy as np
from golden.make_kl_vae import numpy_map, torch_map
from golden.seeded import normal, weights

from jaxgen.tokenizers import va_vae
from jaxgen.tokenizers.kl_vae import KlVae
from jaxgen.weights import va_vae as family
from jaxgen.weights.names import to_jaxgen, to_published

# Attention where a side of 256 pixels has become 16, which is the last level of either.
TINY = {'widths': (32, 32, 32, 32, 64), 'blocks': 1, 'channels': 4, 'scale': 1.5}
FULL = {}
SIDES = (32, 48)


def published(tokenizer: KlVae) -> dict[str, np.ndarray]:
    """Seeded weights and statistics by the authors' names."""
    network = tokenizer.network
    like = jax.eval_shape(network.init, jax.random.key(0), *family.inputs(network))['params']
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), like)
    names = to_published(family.layouts(network)['authors'], hollow)
    arrays = weights({name: array.shape for name, array in names.items()})
    arrays['std'] = 0.5 + np.abs(arrays['std'])
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def parameters(tokenizer: KlVae) -> dict[str, Any]:
    """The same as our tree."""
    return to_jaxgen(family.layouts(tokenizer.network)['authors'], published(tokenizer))


def image() -> np.ndarray:
    """Images, not of uint8."""
    return normal('image', (2, *SIDES, 3))


def latents(tokenizer: KlVae) -> np.ndarray:
    """Latents as a generator makes them."""
    return normal('latents', (2, *(side // tokenizer.network.factor for side in SIDES), tokenizer.latent[-1]))


def authors(tokenizer: KlVae) -> dict[str, np.ndarray]:
    """The authors' moments, means of latents as their generator has them, and pixels of such latents."""
    import torch

    arrays = {name: torch.tensor(array) for name, array in published(tokenizer).items()}
    mean, std = arrays.pop('mean'), arrays.pop('std')
    model, scale = _model(family.to_config(tokenizer.network)), tokenizer.network.scale
    model.load_state_dict(arrays)
    with torch.no_grad():
        moments = model.encode(torch_map(image())).parameters
        likely = (moments.chunk(2, dim=1)[0] - mean) / std * scale
        pixels = model.decode(torch_map(latents(tokenizer)) * std / scale + mean)
    results = {'moments': moments, 'latents': likely, 'pixels': pixels}
    return {name: numpy_map(value) for name, value in results.items()}


def _model(settings: dict[str, Any]) -> Any:
    """The authors' network, whose class leaves everything but the channels at its full size."""
    file = pathlib.Path(os.environ['JAXGEN_LIGHTNINGDIT'], 'tokenizer', 'autoencoder.py')
    spec = importlib.util.spec_from_file_location('vavae', file)
    module = importlib.util.module_from_spec(spec)
    absent = {name: mock.MagicMock() for name in ('torchvision', 'requests', 'tqdm')}
    with mock.patch.dict('sys.modules', absent):
        spec.loader.exec_module(module)
    model = module.AutoencoderKL(settings['embed_dim'], settings['ch_mult'])
    sizes = ('ch', 'ch_mult', 'num_res_blocks', 'attn_resolutions', 'resolution', 'z_channels')
    sizes = {name: settings[name] for name in sizes}
    model.encoder, model.decoder = module.Encoder(**sizes), module.Decoder(**sizes)
    return model.eval()


def main() -> None:
    results = authors(va_vae.build(**TINY))
    np.savez_compressed(pathlib.Path(__file__).with_name('va_vae.npz'), **results)


if __name__ == '__main__':
    main()
