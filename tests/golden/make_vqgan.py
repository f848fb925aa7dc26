"""VAR's tokenizer's golden file: the authors' results on seeded weights, and the cases themselves.

Needs torch, and in JAXGEN_VAR and JAXGEN_FLEXVAR checkouts of FoundationVision/VAR and jiaosiyu1999/FlexVAR.
From the repository's root:
PYTHONPATH=.:tests python tests/golden/make_vqgan.py
"""

import importlib.util
import os
import pathlib
import sys
import types
from typing import Any
from unittest import mock

import jax
import numpy as np
from golden.make_kl_vae import numpy_map, torch_map
from golden.seeded import normal, weights

from jaxgen.tokenizers import vqgan
from jaxgen.tokenizers.vqgan import Vqgan
from jaxgen.weights import vqgan as family
from jaxgen.weights.names import to_jaxgen, to_published

# By the names of the authors' class, which fixes all else; sixteen pixels are a latent.
TINY = {'vocab_size': 64, 'z_channels': 8, 'ch': 32, 'v_patch_nums': (1, 2, 3, 4)}
CASES = {
    'tiny': TINY,
    'by_angle': TINY | {'using_znorm': True, 'share_quant_resi': 1, 'quant_conv_ks': 1},
    'one_phi_each': TINY | {'share_quant_resi': 0, 'v_patch_nums': (1, 3, 4)},
    'no_phi': TINY | {'quant_resi': 0.0},
}
FULL = {'ch': 160}
# LlamaGen's and FlexVAR's, whose class fixes widths and blocks; a scale of each size, none of them square.
FLEXIBLE = {'_class_name': 'VQModel', 'codebook_size': 64, 'codebook_embed_dim': 4, 'z_channels': 16}
FLEXIBLE_SCALES = ((1, 1), (2, 1), (3, 2), (4, 2))
FLEXIBLE_SIDES = (32, 16)


def tokenizer(settings: dict[str, Any]) -> Vqgan:
    """The tokenizer of a case."""
    return vqgan.build(**family.from_config(settings))


def published(tokenizer: Vqgan) -> dict[str, np.ndarray]:
    """Seeded weights by the authors' names; latents and codes of about one size."""
    network = tokenizer.network
    like = jax.eval_shape(network.init, jax.random.key(0), *family.inputs(network))['params']
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), like)
    names = to_published(family.layouts(network)['authors'], hollow)
    arrays = weights({name: array.shape for name, array in names.items()})
    arrays['quantize.embedding.weight'] = 2 * arrays['quantize.embedding.weight']
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def parameters(tokenizer: Vqgan) -> dict[str, Any]:
    """The same as our tree."""
    return to_jaxgen(family.layouts(tokenizer.network)['authors'], published(tokenizer))


def image(tokenizer: Vqgan, batch: int = 2) -> np.ndarray:
    """Images, not of uint8."""
    return normal('image', (batch, tokenizer.resolution, tokenizer.resolution, 3))


def authors(tokenizer: Vqgan, batch: int = 2) -> dict[str, np.ndarray]:
    """What the authors' code makes of images: latents, codes of all scales side by side, what a generator is
    given for them, the sum of all scales, pixels of it; the loss of quantization and its gradients.
    """
    import torch

    model = _model(tokenizer)
    quantizer = model.quantize
    with torch.no_grad():
        f = model.quant_conv(model.encoder(torch_map(image(tokenizer, batch))))
        codes = quantizer.f_to_idxBl_or_fhat(f, to_fhat=False)
        sums = quantizer.f_to_idxBl_or_fhat(f, to_fhat=True)
        pixels = model.decoder(model.post_quant_conv(sums[-1]))
        teacher = quantizer.idxBl_to_var_input(codes)
    with mock.patch.object(torch.cuda.amp, 'autocast', mock.MagicMock()):
        _, _, loss = quantizer(f.requires_grad_())
    parameters = dict(quantizer.named_parameters())
    gradients = torch.autograd.grad(loss, [f, *parameters.values()])
    by_name = {f'by_quantize.{name}': one.numpy() for name, one in zip(parameters, gradients[1:])}
    return by_name | {
        'latents': numpy_map(f),
        'codes': torch.cat(codes, 1).numpy().astype(np.int32),
        'teacher': teacher.numpy(),
        'sums': np.stack([numpy_map(one) for one in sums]),
        'pixels': numpy_map(pixels),
        'loss': np.float32(loss.item()),
        'by_latents': numpy_map(gradients[0]),
    }


def flexible(tokenizer: Vqgan) -> dict[str, np.ndarray]:
    """The codes that FlexVAR makes at each scale, what its generator is given, pixels of the last one."""
    import torch
    from torch.nn.functional import interpolate

    file = pathlib.Path(os.environ['JAXGEN_FLEXVAR'], 'models', 'vq_llama.py')
    spec = importlib.util.spec_from_file_location('vq_llama', file)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {'vq_llama': module}), mock.patch('builtins.print'):
        spec.loader.exec_module(module)
        model = module.VQ_8(**{k: v for k, v in FLEXIBLE.items() if not k.startswith('_')}).eval()
    arrays = {name: torch.tensor(array) for name, array in published(tokenizer).items()}
    missing, unexpected = model.load_state_dict(arrays, strict=False)
    assert not unexpected and missing == ['quantize.codebook_used'], (missing, unexpected)
    codes, given = [], []
    with torch.no_grad():
        latents = model.encode_conti(torch_map(normal('image', (2, *FLEXIBLE_SIDES, 3))))
        for k, size in enumerate(FLEXIBLE_SCALES):
            vectors, _, (_, _, chosen) = model.quantize(interpolate(latents, size, mode='area'))
            codes.append(chosen.reshape(2, -1).numpy())
            for following in FLEXIBLE_SCALES[k + 1 : k + 2]:
                given.append(interpolate(vectors, following, mode='bicubic').flatten(2).mT.numpy())
        pixels = model.decode_code(torch.tensor(codes[-1]), (2, 4, *FLEXIBLE_SCALES[-1]))
    return {
        'codes': np.concatenate(codes, 1).astype(np.int32),
        'teacher': np.concatenate(given, 1),
        'pixels': numpy_map(pixels),
    }


def flexible_tokenizer() -> Vqgan:
    """The same tokenizer, three levels of it."""
    levels = {'encoder_ch_mult': (1, 2, 2, 4), 'decoder_ch_mult': (1, 2, 2, 4)}
    return vqgan.build(**family.from_config(FLEXIBLE | levels)).at(FLEXIBLE_SCALES)


def _model(tokenizer: Vqgan) -> Any:
    """The authors' network with the seeded weights."""
    import torch

    root = pathlib.Path(os.environ['JAXGEN_VAR'])
    package = types.ModuleType('var_models')
    package.__path__ = [str(root / 'models')]
    distributed = types.ModuleType('dist')
    distributed.initialized = lambda: False
    tools = mock.MagicMock()
    tools.get_world_size.return_value = 1
    with mock.patch.dict(sys.modules, {'var_models': package, 'dist': distributed}):
        module = importlib.import_module('var_models.vqvae')
        sys.modules['var_models.quant'].tdist = tools
    settings = {k: v for k, v in family.to_config(tokenizer.network).items() if not k.startswith('_')}
    model = module.VQVAE(**settings, test_mode=False).eval()
    arrays = {name: torch.tensor(array) for name, array in published(tokenizer).items()}
    missing, unexpected = model.load_state_dict(arrays, strict=False)
    assert not unexpected and missing == ['quantize.ema_vocab_hit_SV'], (missing, unexpected)
    return model


def main() -> None:
    results = {
        f'{case}/{name}': array
        for case, settings in CASES.items()
        for name, array in authors(tokenizer(settings)).items()
        if case == 'tiny' or name in ('codes', 'teacher', 'loss', 'by_latents')
    }
    results |= {f'flexible/{name}': array for name, array in flexible(flexible_tokenizer()).items()}
    np.savez_compressed(pathlib.Path(__file__).with_name('vqgan.npz'), **results)


if __name__ == '__main__':
    main()
