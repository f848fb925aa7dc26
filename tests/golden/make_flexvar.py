"""Writes flexvar.npz: the authors' FlexVAR on seeded weights, and holds the case and how their code is run.

Needs torch, and in JAXGEN_FLEXVAR a checkout of jiaosiyu1999/FlexVAR. From the repository's root:
PYTHONPATH=.:tests python tests/golden/make_flexvar.py
"""

import importlib
import os
import pathlib
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden import seeded
from golden.var_cases import DROP, LABELS

from jaxgen.models import flexvar, var
from jaxgen.weights import flexvar as names
from jaxgen.weights.names import to_jaxgen, to_published

SETTINGS = {
    'codes': 64,
    'channels': 8,
    'classes': 5,
    'depth': 3,
    'hidden': 24,
    'heads': 3,
}
SIDES = (1, 2, 3, 5)
OTHER = (1, 2, 4, 7)  # of as many tokens as none of the others
LARGEST = 800  # elements of a gradient worth storing


def network() -> flexvar.FlexVAR:
    """The case's network."""
    return flexvar.build(scales=var.squares(SIDES), **SETTINGS)


def told(sides: tuple[int, ...]) -> np.ndarray:
    """What the tokens after the first scale are told."""
    return seeded.normal('told', (len(LABELS), sum(side**2 for side in sides[1:]), SETTINGS['channels']))


def parameters() -> dict:
    """The network's parameter tree with seeded values, none of them zero."""
    made = network()
    abstract = jax.eval_shape(made.init, jax.random.key(0), *names.inputs(made))['params']
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    shapes = {name: array.shape for name, array in to_published(names.authors(), empty).items()}
    return to_jaxgen(names.authors(), seeded.weights(shapes), abstract)


def run(params: dict, sides: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Logits by scales, and the gradients of the sum of their squares by the authors' names."""
    made, condition = network().at(var.squares(sides)), {'label': LABELS, 'drop': DROP}

    def objective(params: Any, x: jax.Array) -> tuple:
        logits, _, _ = made.apply({'params': params}, x, None, condition)
        return jnp.sum(logits**2), logits

    grad = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))
    (_, logits), (by_params, by_x) = grad(params, told(sides))
    by_params = to_published(names.authors(), by_params)
    return {**by_params, 'logits': np.asarray(logits), 'by_x': np.asarray(by_x)}


def authors(root: str, weights: dict[str, np.ndarray]) -> Any:
    """The authors' network with the given weights."""
    import torch

    sys.path.insert(0, root)
    try:
        module = importlib.import_module('models.flexvar')
    finally:
        sys.path.pop(0)
        for loaded in [key for key in sys.modules if key.partition('.')[0] in ('models', 'dist')]:
            del sys.modules[loaded]
    tokenizer = types.SimpleNamespace(Cvae=SETTINGS['channels'], vocab_size=SETTINGS['codes'])
    model = module.FlexVAR(
        tokenizer,
        num_classes=SETTINGS['classes'],
        depth=SETTINGS['depth'],
        embed_dim=SETTINGS['hidden'],
        num_heads=SETTINGS['heads'],
        attn_l2_norm=True,
        cond_drop_rate=0.0,
        patch_nums=SIDES,
    )
    left = model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()}, strict=False)
    assert not left.unexpected_keys, left
    assert all(name.endswith(('zero_k_bias', 'attn_bias_for_masking')) for name in left.missing_keys), left
    return model.eval()


def run_authors(model: Any, sides: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The authors' logits and gradients."""
    import torch

    model.zero_grad()
    x = torch.from_numpy(told(sides)).requires_grad_()
    logits = model(torch.from_numpy(np.where(DROP, SETTINGS['classes'], LABELS)), x, sides)
    (logits**2).sum().backward()
    gradients = {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}
    return {**gradients, 'logits': logits.detach().numpy(), 'by_x': x.grad.numpy()}


def main() -> None:
    model = authors(os.environ['JAXGEN_FLEXVAR'], to_published(names.authors(), parameters()))
    stored = {}
    for sides in (SIDES, OTHER):
        results = run_authors(model, sides)
        small = {name: a for name, a in results.items() if a.size <= LARGEST or name in ('logits', 'by_x')}
        stored |= {f'{sides[-1]}/{name}': a for name, a in small.items()}
    np.savez_compressed(pathlib.Path(__file__).with_name('flexvar.npz'), **stored)


if __name__ == '__main__':
    main()
