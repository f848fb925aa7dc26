"""The small VARs that golden files and live parity tests share, and the authors' code that they are held to.

JAXGEN_VAR names a checkout of FoundationVision/VAR.
"""

import importlib
import json
import pathlib
import sys
import types
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from golden import seeded

from jaxgen.models import var
from jaxgen.weights import var as names
from jaxgen.weights.names import to_jaxgen, to_published

SCALES = (1, 2, 3, 4)
TOKENS = sum(side**2 for side in SCALES)
TINY = {
    'scales': var.squares(SCALES),
    'codes': 64,
    'channels': 8,
    'classes': 5,
    'depth': 3,
    'hidden': 24,
    'heads': 3,
}
CASES = {
    'plain': TINY,
    'shared': TINY | {'shared': True},
    'free_norm': TINY | {'unit_norm': False},
}
# For generation, with the tokenizer of make_vqgan's TINY; what is painted in, of its four by four latents.
GUIDANCE, PAINTED = 4.0, (slice(1, 4), slice(0, 2))
# Of the published depth 16, but for the number of layers.
FULL = TINY | {'scales': var.squares(var.SIDES_256), 'codes': 4096, 'channels': 32, 'depth': 2}
FULL |= {'hidden': 1024, 'heads': 16, 'classes': 1000}
LABELS, DROP = np.array([0, 3, 1]), np.array([False, False, True])
LARGEST = 800  # elements of a gradient worth storing


def told(settings: dict) -> np.ndarray:
    """What the tokens after the first scale are told."""
    tokens = sum(rows * columns for rows, columns in settings['scales'][1:])
    return seeded.normal('told', (len(LABELS), tokens, settings['channels']))


def cotangent(settings: dict) -> np.ndarray:
    """What logits are multiplied by before they are summed, for gradients."""
    tokens = sum(rows * columns for rows, columns in settings['scales'])
    return seeded.normal('cotangent', (len(LABELS), tokens, settings['codes']))


def picture(tokenizer: Any) -> np.ndarray:
    """Latents to paint into."""
    return seeded.normal('picture', (len(LABELS), *tokenizer.latent))


def parameters(network: var.VAR) -> dict:
    """The network's parameter tree with seeded values, none of them zero."""
    abstract = jax.eval_shape(network.init, jax.random.key(0), *names.inputs(network))['params']
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    table = names.authors(network.shared)
    shapes = {name: array.shape for name, array in to_published(table, empty).items()}
    return to_jaxgen(table, seeded.weights(shapes), abstract)


def run(network: var.VAR, params: dict, settings: dict) -> dict[str, np.ndarray]:
    """Logits, and the gradients of their sum with `cotangent` for what is told and by the authors' names."""
    condition = {'label': LABELS, 'drop': DROP}

    def objective(params: Any, x: jax.Array) -> tuple:
        logits, _, _ = network.apply({'params': params}, x, None, condition)
        return jnp.sum(logits * cotangent(settings)), logits

    grad = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))
    (_, logits), (by_params, by_x) = grad(params, told(settings))
    by_params = to_published(names.authors(network.shared), by_params)
    return {**by_params, 'logits': np.asarray(logits), 'by_x': np.asarray(by_x)}


def modules(root: str) -> types.ModuleType:
    """The authors' package `models`, as it is at `root`."""
    sys.path.insert(0, root)
    try:
        models = importlib.import_module('models')
        return types.SimpleNamespace(
            root=root, VQVAE=models.VQVAE, VAR=models.VAR, var=sys.modules['models.var']
        )
    finally:
        sys.path.pop(0)
        for loaded in [key for key in sys.modules if key.partition('.')[0] in ('models', 'dist')]:
            del sys.modules[loaded]


def authors(root: str, settings: dict, weights: dict[str, np.ndarray], tokenizer: Any = None) -> Any:
    """The authors' network with the given weights; `tokenizer` are weights of theirs, of the right sizes."""
    import torch

    package = modules(root)
    sides = tuple(rows for rows, _ in settings['scales'])
    autoencoder = package.VQVAE(
        vocab_size=settings['codes'], z_channels=settings['channels'], ch=32, v_patch_nums=sides
    )
    if tokenizer is not None:
        arrays = {name: torch.from_numpy(array.copy()) for name, array in tokenizer.items()}
        assert not autoencoder.load_state_dict(arrays, strict=False).unexpected_keys
    model = package.VAR(
        autoencoder,
        num_classes=settings['classes'],
        depth=settings['depth'],
        embed_dim=settings['hidden'],
        num_heads=settings['heads'],
        shared_aln=settings.get('shared', False),
        attn_l2_norm=settings.get('unit_norm', True),
        patch_nums=sides,
        cond_drop_rate=0.0,
    )
    left = model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()}, strict=False)
    computed = {'lvl_1L', 'attn_bias_for_masking'}
    assert not left.unexpected_keys, left
    assert {name for name in left.missing_keys if not name.endswith('zero_k_bias')} <= computed, left
    model.package = package
    return model.eval()


def run_authors(model: Any, settings: dict) -> dict[str, np.ndarray]:
    """The authors' logits and gradients."""
    import torch

    x = torch.from_numpy(told(settings)).requires_grad_()
    logits = model(torch.from_numpy(np.where(DROP, settings['classes'], LABELS)), x)
    (logits * torch.from_numpy(cotangent(settings))).sum().backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return {**gradients, 'logits': logits.detach().numpy(), 'by_x': x.grad.numpy()}


def generated(model: Any, known: tuple[np.ndarray, ...] | None = None) -> dict[str, np.ndarray]:
    """Guided logits and the likeliest codes of every scale, and their latents, as the authors' sampler draws.

    With `known` codes by the function of their notebook, which paints in where PAINTED says.
    """
    import torch

    logits, chosen, latents = [], [], []
    own, labels = model.package.var.sample_with_top_k_top_p_, torch.from_numpy(LABELS)

    def recorded(logits_BlV: Any, **kwargs: Any) -> Any:
        logits.append(logits_BlV.numpy().copy())
        indices = own(logits_BlV, **kwargs)
        chosen.append(indices[..., 0].numpy().copy())
        return indices

    def kept(f_hat: Any) -> Any:
        latents.append(f_hat.numpy().transpose(0, 2, 3, 1).copy())
        return f_hat

    options = {'g_seed': 0, 'cfg': GUIDANCE - 1, 'top_k': 1}
    with (
        mock.patch.object(model.package.var, 'sample_with_top_k_top_p_', recorded),
        mock.patch.object(model.vae_proxy[0], 'fhat_to_img', kept),
        torch.no_grad(),
    ):
        if known is None:
            model.autoregressive_infer_cfg(len(labels), labels, **options)
        else:
            keep = torch.ones(SCALES[-1], SCALES[-1])
            keep[PAINTED] = 0
            codes = [torch.from_numpy(np.array(each)).long() for each in known]
            paint = _painter(model, recorded)
            paint(model, len(labels), labels, input_img_tokens=codes, edit_mask=keep, **options)
    chosen, logits = np.concatenate(chosen, 1), np.concatenate(logits, 1)
    return {'codes': chosen, 'guided': logits, 'latents': latents[0]}


def _painter(model: Any, choose: Any) -> Any:
    """What the authors' notebook draws with where tokens are given."""
    import torch

    notebook = json.loads((pathlib.Path(model.package.root) / 'demo_zero_shot_edit.ipynb').read_text())
    cells = [''.join(cell['source']) for cell in notebook['cells'] if cell['cell_type'] == 'code']
    cell = next(cell for cell in cells if 'def replace_embedding' in cell)
    lines = [line for line in cell.splitlines() if not line.startswith('from models')]
    space = {name: getattr(model.package.var, name) for name in ('AdaLNSelfAttn', 'gumbel_softmax_with_rng')}
    space |= {'sample_with_top_k_top_p_': choose, 'torch': torch}
    exec('\n'.join(lines), space)
    return space['autoregressive_infer_cfg_with_mask']
