"""Writes maskgit.npz: the authors' MaskGIT on seeded weights, what it draws, and MaskBit; holds the cases.

Needs torch, in JAXGEN_MASKGIT a checkout of valeoai/Halton-MaskGIT, in JAXGEN_MASKBIT one of
markweberdev/maskbit. From the repository's root: PYTHONPATH=.:tests python tests/golden/make_maskgit.py
"""

import contextlib
import importlib
import os
import pathlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden import seeded

from jaxgen.models import maskbit, maskgit
from jaxgen.weights import maskbit as maskbit_names
from jaxgen.weights import maskgit as maskgit_names
from jaxgen.weights.names import NameMap, to_jaxgen, to_published

SIDE, CODES, CLASSES = 4, 36, 5
LABELS, DROP = np.array([0, 3, 1]), np.array([False, False, True])
SMALL = {'scales': ((SIDE, SIDE),), 'classes': CLASSES, 'depth': 2, 'hidden': 24, 'heads': 3}
CASES = {
    'maskgit': SMALL | {'codes': CODES, 'registers': 2},
    'bits': SMALL | {'codes': 64, 'groups': 2},
    'tables': SMALL | {'codes': 64, 'groups': 2, 'bits': False},
}
# By the authors' Halton sampler.
STEPS, GUIDANCE = 5, 2.5
LARGEST = 800  # elements of a gradient worth storing
HALTON = (16, 24)  # the sides of published grids


def network(case: str) -> Any:
    """The case's network."""
    return (maskgit if case == 'maskgit' else maskbit).build(**CASES[case])


def table(case: str) -> NameMap:
    """The authors' names of the case's network."""
    made = network(case)
    return maskgit_names.authors() if case == 'maskgit' else maskbit_names.authors(made.bits, made.groups)


def tokens(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, N] and which of them are hidden."""
    made = network(case)
    state = np.random.RandomState(7)
    shape = (len(LABELS), made.places * made.groups)
    return state.randint(0, made.vocabulary, shape).astype(np.int32), state.random_sample(shape) < 0.5


def cotangent(case: str) -> np.ndarray:
    """What logits are multiplied by before they are summed, for gradients."""
    made = network(case)
    return seeded.normal('cotangent', (len(LABELS), made.places * made.groups, made.vocabulary))


def parameters(case: str) -> dict:
    """The network's parameter tree with seeded values, none of them zero."""
    made = network(case)
    abstract = jax.eval_shape(made.init, jax.random.key(0), *maskgit_names.inputs(made))['params']
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    shapes = {name: array.shape for name, array in to_published(table(case), empty).items()}
    weights = seeded.weights(shapes)
    if case == 'maskgit':
        weights['head.bias'][-1] = -20  # so that the authors' sampler does not choose what is hidden
    return to_jaxgen(table(case), weights, abstract)


def run(case: str, params: dict) -> dict[str, np.ndarray]:
    """Logits, and the gradients of their sum with `cotangent` by the authors' names."""
    made, (x, hidden) = network(case), tokens(case)

    def objective(params: Any) -> tuple:
        logits, _, _ = made.apply({'params': params}, x, hidden, {'label': LABELS, 'drop': DROP})
        return jnp.sum(logits * cotangent(case)), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    return {**to_published(table(case), gradients), 'logits': np.asarray(logits)}


@contextlib.contextmanager
def importing(root: str, *packages: str) -> Iterator[None]:
    """The authors' packages while they are imported, and not after."""
    sys.path.insert(0, root)
    try:
        yield
    finally:
        sys.path.pop(0)
        for loaded in [key for key in sys.modules if key.partition('.')[0] in packages]:
            del sys.modules[loaded]


def authors(case: str, root: str, weights: dict[str, np.ndarray]) -> Any:
    """The authors' network with the given weights."""
    import torch

    made = network(case)
    if case == 'maskgit':
        with importing(root, 'Network'):
            module = importlib.import_module('Network.transformer')
        model = module.Transformer(
            input_size=SIDE,
            hidden_dim=made.width,
            codebook_size=made.codes,
            depth=made.depth,
            heads=made.heads,
            mlp_dim=4 * made.width,
            nclass=made.classes,
            register=made.registers,
        )
        weights = weights | {'head.weight': weights['tok_emb.weight']}
    else:
        with importing(root, 'modeling'):
            package = types.ModuleType('modeling')  # whose own __init__ wants much that is not needed
            package.__path__ = [f'{root}/modeling']
            inner = types.ModuleType('modeling.modules')
            inner.BaseModel = torch.nn.Module
            sys.modules |= {'modeling': package, 'modeling.modules': inner}
            module = importlib.import_module('modeling.bert')
        model = (module.LFQBert if made.bits else module.Bert)(
            img_size=16 * SIDE,
            hidden_dim=made.width,
            codebook_size=made.codes,
            codebook_splits=made.groups,
            depth=made.depth,
            heads=made.heads,
            mlp_dim=4 * made.width,
            nclass=made.classes,
        )
    left = model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()}, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {'bits_to_indices'}, left
    return model.eval()


def run_authors(case: str, model: Any) -> dict[str, np.ndarray]:
    """The authors' logits and gradients."""
    import torch

    made, (x, hidden) = network(case), tokens(case)
    told = torch.from_numpy(np.where(hidden, made.vocabulary, x)).long()
    label, drop = torch.from_numpy(LABELS), torch.from_numpy(DROP)
    if case == 'maskgit':
        logits = model(told.reshape(-1, SIDE, SIDE), label, drop)[..., : made.codes]
    else:
        logits = model(told.reshape(len(told), -1, made.groups), label.clone(), drop)
        logits = logits.reshape(len(told), -1, made.vocabulary)
    model.zero_grad()
    (logits * torch.from_numpy(cotangent(case))).sum().backward()
    gradients = {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}
    return {**gradients, 'logits': logits.detach().numpy()}


def drawn(model: Any, root: str) -> dict[str, np.ndarray]:
    """What the authors' Halton sampler draws greedily, with guidance, and the order of its grids."""
    import torch

    with importing(root, 'Sampler'):
        sampler = importlib.import_module('Sampler.halton_sampler').HaltonSampler
    trainer = types.SimpleNamespace(
        vit=model,
        input_size=SIDE,
        ae=types.SimpleNamespace(decode_code=lambda code: code.clone()),
        args=types.SimpleNamespace(device='cpu', mask_value=CODES, codebook_size=CODES),
        autocast=contextlib.nullcontext(),
    )
    made = sampler(w=GUIDANCE - 1, step=STEPS, top_k=1)
    labels = torch.from_numpy(LABELS)
    _, steps, masks = made(trainer, nb_sample=len(LABELS), labels=labels, verbose=False)
    codes, turns = np.zeros((2, len(LABELS), SIDE * SIDE), np.int32)
    for turn, (code, mask) in enumerate(zip(steps, masks)):
        here = mask.numpy().reshape(codes.shape) > 0
        codes[here], turns[here] = code.numpy().reshape(codes.shape)[here], turn + 1
    orders = {}
    for side in HALTON:
        rows, columns = made.build_halton_mask(side).numpy().T
        orders[f'order/{side}'] = (rows * side + columns).astype(np.int16)
    return {'drawn/codes': codes, 'drawn/turns': turns, **orders}


def main() -> None:
    stored = {}
    for case in CASES:
        root = os.environ['JAXGEN_MASKGIT' if case == 'maskgit' else 'JAXGEN_MASKBIT']
        model = authors(case, root, to_published(table(case), parameters(case)))
        results = run_authors(case, model)
        stored |= {f'{case}/{k}': a for k, a in results.items() if a.size <= LARGEST or k == 'logits'}
        if case == 'maskgit':
            stored |= drawn(model, root)
    np.savez_compressed(pathlib.Path(__file__).with_name('maskgit.npz'), **stored)


if __name__ == '__main__':
    main()
