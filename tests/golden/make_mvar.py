"""Writes mvar.npz: the authors' M-VAR on seeded weights, and holds the case and how their code is run.

Their network wants mamba_ssm's and flash_attn's CUDA kernels; here it is given these layers as their papers
define them, the recurrence token by token in plain torch. Needs torch, and in JAXGEN_MVAR a checkout of
OliverRensu/MVAR. From the repository's root: PYTHONPATH=.:tests python tests/golden/make_mvar.py
"""

import importlib
import os
import pathlib
import sys
import types
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from golden import seeded
from golden.var_cases import DROP, LABELS

from jaxgen.models import mvar, var
from jaxgen.weights import mvar as names
from jaxgen.weights.names import to_jaxgen, to_published

SIDES = (1, 2, 3, 8)  # of more tokens than a chunk of the scan has
SETTINGS = {
    'scales': var.squares(SIDES),
    'codes': 32,
    'channels': 8,
    'classes': 5,
    'depth': 2,
    'hidden': 64,
    'heads': 4,
}
CASES = {'plain': SETTINGS, 'free_norm': SETTINGS | {'unit_norm': False}}
# Of the published depth 12, but for the number of layers.
FULL = SETTINGS | {'scales': var.squares(var.SIDES_256), 'codes': 4096, 'channels': 32, 'classes': 1000}
FULL |= {'hidden': 768, 'heads': 12}
LARGEST = 800  # elements of a gradient worth storing


def told(settings: dict) -> np.ndarray:
    """What the tokens after the first scale are told."""
    tokens = sum(rows * columns for rows, columns in settings['scales'][1:])
    return seeded.normal('told', (len(LABELS), tokens, settings['channels']))


def cotangent(settings: dict) -> np.ndarray:
    """What logits are multiplied by before they are summed, for gradients."""
    tokens = sum(rows * columns for rows, columns in settings['scales'])
    return seeded.normal('cotangent', (len(LABELS), tokens, settings['codes']))


def parameters(network: mvar.MVAR) -> dict:
    """The network's parameter tree with seeded values, none of them zero."""
    abstract = jax.eval_shape(network.init, jax.random.key(0), *names.inputs(network))['params']
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    shapes = {name: array.shape for name, array in to_published(names.authors(network), empty).items()}
    return to_jaxgen(names.authors(network), seeded.weights(shapes), abstract)


def run(network: mvar.MVAR, params: dict, settings: dict) -> dict[str, np.ndarray]:
    """Logits, and the gradients of their sum with `cotangent` for what is told and by the authors' names."""
    condition = {'label': LABELS, 'drop': DROP}

    def objective(params: Any, x: jax.Array) -> tuple:
        logits, _, _ = network.apply({'params': params}, x, None, condition)
        return jnp.sum(logits * cotangent(settings)), logits

    grad = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))
    (_, logits), (by_params, by_x) = grad(params, told(settings))
    by_params = to_published(names.authors(network), by_params)
    return {**by_params, 'logits': np.asarray(logits), 'by_x': np.asarray(by_x)}


def kernels() -> dict[str, types.ModuleType]:
    """What stands for mamba_ssm and flash_attn."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Norm(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(width))

    class Mamba2(nn.Module):
        """Equations 1 and 2 and figure 6 of 2405.21060, one head width for all, by the published names."""

        def __init__(self, d_model: int, d_state: int, d_conv: int, expand: int, headdim: int = 64) -> None:
            super().__init__()
            self.state, self.inner, self.headdim = d_state, expand * d_model, headdim
            self.heads, mixed = self.inner // headdim, self.inner + 2 * d_state
            self.in_proj = nn.Linear(d_model, self.inner + mixed + self.heads, bias=False)
            self.conv1d = nn.Conv1d(mixed, mixed, d_conv, groups=mixed, padding=d_conv - 1)
            for name in ('dt_bias', 'A_log', 'D'):
                self.register_parameter(name, nn.Parameter(torch.ones(self.heads)))
            self.norm = Norm(self.inner)
            self.out_proj = nn.Linear(self.inner, d_model, bias=False)

        def forward(self, u: Any) -> Any:
            batch, length, _ = u.shape
            sizes = (self.inner, self.inner + 2 * self.state, self.heads)
            z, mixed, dt = self.in_proj(u).split(sizes, -1)
            mixed = functional.silu(self.conv1d(mixed.transpose(1, 2))[..., :length].transpose(1, 2))
            x, written, read = mixed.split((self.inner, self.state, self.state), -1)
            x = x.view(batch, length, self.heads, self.headdim)
            dt = functional.softplus(dt + self.dt_bias)
            fade = torch.exp(-torch.exp(self.A_log) * dt)
            state, rows = x.new_zeros(batch, self.heads, self.headdim, self.state), []
            for token in range(length):
                added = torch.einsum('bh,bhp,bn->bhpn', dt[:, token], x[:, token], written[:, token])
                state = fade[:, token, :, None, None] * state + added
                rows.append(torch.einsum('bhpn,bn->bhp', state, read[:, token]))
            y = (torch.stack(rows, 1) + self.D[:, None] * x).reshape(batch, length, self.inner)
            y = y * functional.silu(z)
            y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5) * self.norm.weight
            return self.out_proj(y)

    def attend(q: Any, k: Any, v: Any, dropout_p: float = 0.0, softmax_scale: float = 1.0) -> Any:
        weights = (torch.einsum('blhk,bmhk->bhlm', q, k) * softmax_scale).softmax(-1)
        return torch.einsum('bhlm,bmhk->blhk', weights, v)

    def by_lengths(q: Any, k: Any, v: Any, starts: Any, _: Any, *longest: int, softmax_scale: float) -> Any:
        pieces = [slice(int(first), int(last)) for first, last in zip(starts, starts[1:])]
        return torch.cat(
            [attend(q[None, p], k[None, p], v[None, p], softmax_scale=softmax_scale)[0] for p in pieces]
        )

    mamba, flash = types.ModuleType('mamba_ssm'), types.ModuleType('flash_attn')
    mamba.Mamba2, flash.flash_attn_func, flash.flash_attn_varlen_func = Mamba2, attend, by_lengths
    flash.flash_attn_qkvpacked_func = None
    return {'mamba_ssm': mamba, 'flash_attn': flash}


def authors(root: str, settings: dict, weights: dict[str, np.ndarray]) -> Any:
    """The authors' network with the given weights, as it trains but without chance."""
    import torch

    sys.path.insert(0, root)
    try:
        with mock.patch.dict(sys.modules, kernels()):
            module = importlib.import_module('models.mvar')
    finally:
        sys.path.pop(0)
        for loaded in [key for key in sys.modules if key.partition('.')[0] in ('models', 'dist')]:
            del sys.modules[loaded]
    tokenizer = types.SimpleNamespace(Cvae=settings['channels'], vocab_size=settings['codes'], quantize=None)
    model = module.MVAR(
        tokenizer,
        num_classes=settings['classes'],
        depth=settings['depth'],
        embed_dim=settings['hidden'],
        num_heads=settings['heads'],
        attn_l2_norm=settings.get('unit_norm', True),
        cond_drop_rate=0.0,
        patch_nums=tuple(rows for rows, _ in settings['scales']),
        fused_if_available=False,
    )
    left = model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()}, strict=False)
    assert not left.unexpected_keys, left
    computed = ('zero_k_bias', 'attn_bias_for_masking', 'lvl_1L', 'patch_nums')
    assert all(name.endswith(computed) for name in left.missing_keys), left
    return model.train()


def run_authors(model: Any, settings: dict) -> dict[str, np.ndarray]:
    """The authors' logits and gradients."""
    import torch

    x = torch.from_numpy(told(settings)).requires_grad_()
    logits = model(torch.from_numpy(np.where(DROP, settings['classes'], LABELS)), x)
    (logits * torch.from_numpy(cotangent(settings))).sum().backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return {**gradients, 'logits': logits.detach().numpy(), 'by_x': x.grad.numpy()}


def main() -> None:
    stored = {}
    for case, settings in CASES.items():
        network = mvar.build(**settings)
        weights = to_published(names.authors(network), parameters(network))
        results = run_authors(authors(os.environ['JAXGEN_MVAR'], settings, weights), settings)
        small = {name: a for name, a in results.items() if a.size <= LARGEST or name in ('logits', 'by_x')}
        stored |= {f'{case}/{name}': a for name, a in small.items()}
    np.savez_compressed(pathlib.Path(__file__).with_name('mvar.npz'), **stored)


if __name__ == '__main__':
    main()
