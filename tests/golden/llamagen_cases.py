"""The small LlamaGens that golden files and live parity tests share, and the authors' code they are held to.

JAXGEN_LLAMAGEN names a checkout of FoundationVision/LlamaGen.
"""

import importlib
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden import seeded

from jaxgen.models import llamagen
from jaxgen.weights import llamagen as names
from jaxgen.weights.names import to_jaxgen, to_published

SIDE = 3
TINY = {
    'scales': ((SIDE, SIDE),),
    'codes': 48,
    'classes': 5,
    'depth': 3,
    'hidden': 24,
    'heads': 3,
}
TEXT = TINY | {'caption_width': 10, 'caption_length': 7}
CASES = {'class': TINY, 'text': TEXT}
FULL = TINY | {'hidden': 768, 'heads': 12, 'scales': ((8, 8),), 'codes': 1024}
LABELS, DROP = np.array([0, 3, 1]), np.array([False, False, True])
LENGTHS = (7, 3, 5)  # of captions, in tokens
LARGEST = 800  # elements of a gradient worth storing
GUIDANCE, GUIDED = 3.0, 4  # that many tokens where it ends


def tokens(settings: dict) -> np.ndarray:
    """Codes to predict."""
    state = np.random.RandomState(0)
    return state.randint(0, settings['codes'], (len(LABELS), settings['scales'][0][0] ** 2))


def cotangent(settings: dict) -> np.ndarray:
    """What logits are multiplied by before they are summed, for gradients."""
    return seeded.normal('cotangent', (*tokens(settings).shape, settings['codes']))


def condition(settings: dict, drop: Any = DROP) -> dict[str, np.ndarray]:
    """What is asked for, captions with their padding behind them."""
    if 'caption_width' not in settings:
        return {'label': LABELS, 'drop': np.asarray(drop)}
    shape = (len(LABELS), settings['caption_length'], settings['caption_width'])
    mask = np.arange(shape[1]) < np.array(LENGTHS)[:, None]
    return {'text': seeded.normal('text', shape), 'text_mask': mask, 'drop': np.asarray(drop)}


def parameters(network: llamagen.LlamaGen) -> dict:
    """The network's parameter tree with seeded values, none of them zero."""
    abstract = jax.eval_shape(network.init, jax.random.key(0), *names.inputs(network))['params']
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    table = names.layouts(network)['authors']
    shapes = {name: array.shape for name, array in to_published(table, empty).items()}
    if 'level' in abstract:
        abstract['level'] = seeded.normal('level', abstract['level'].shape)
    return to_jaxgen(table, seeded.weights(shapes), abstract)


def run(network: llamagen.LlamaGen, params: dict, settings: dict) -> dict[str, np.ndarray]:
    """Logits, and the gradients of their sum with `cotangent` by the authors' names."""

    def objective(params: Any) -> tuple:
        logits, _, _ = network.apply({'params': params}, tokens(settings), None, condition(settings))
        return jnp.sum(logits * cotangent(settings)), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    gradients = to_published(names.layouts(network)['authors'], gradients)
    return {**gradients, 'logits': np.asarray(logits)}


def modules(root: str) -> types.SimpleNamespace:
    """The authors' modules, as they are at `root`."""
    sys.path.insert(0, root)
    try:
        gpt = importlib.import_module('autoregressive.models.gpt')
        return types.SimpleNamespace(
            gpt=gpt, generate=importlib.import_module('autoregressive.models.generate')
        )
    finally:
        sys.path.pop(0)
        for loaded in [key for key in sys.modules if key.partition('.')[0] in ('autoregressive', 'utils')]:
            del sys.modules[loaded]


def authors(root: str, settings: dict, weights: dict[str, np.ndarray]) -> Any:
    """The authors' network with the given weights."""
    import torch

    package, captions = modules(root), 'caption_width' in settings
    arguments = package.gpt.ModelArgs(
        dim=settings['hidden'],
        n_layer=settings['depth'],
        n_head=settings['heads'],
        num_classes=settings['classes'],
        caption_dim=settings.get('caption_width', 1),
        cls_token_num=settings.get('caption_length', 1),
        model_type='t2i' if captions else 'c2i',
        vocab_size=settings['codes'],
        block_size=settings['scales'][0][0] ** 2,
    )
    model = package.gpt.Transformer(arguments)
    if captions:  # theirs has room for 120 tokens whatever it is told
        shape = settings['caption_length'], settings['caption_width']
        model.cls_embedding.uncond_embedding = torch.zeros(shape)
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
    model.package = package
    return model.eval()


def padded_before(settings: dict, cond: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Captions as the authors' loader gives them: zeros, then the tokens; and which of them are real."""
    text, real = np.zeros_like(cond['text']), np.zeros_like(cond['text_mask'])
    for row, mask, given, length in zip(text, real, cond['text'], LENGTHS):
        row[-length:], mask[-length:] = given[:length], True
    return text, real


def run_authors(model: Any, settings: dict) -> dict[str, np.ndarray]:
    """The authors' logits in training, without chance, and gradients."""
    import torch

    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    cond, mask = condition(settings), None
    embed, drop = model.cls_embedding, torch.from_numpy(DROP.astype(np.int64))
    own = embed.forward
    embed.forward = lambda given, train: own(given, train, force_drop_ids=drop)
    if 'caption_width' in settings:
        text, real = padded_before(settings, cond)
        embed.uncond_embedding.requires_grad_()
        length = text.shape[1] + settings['scales'][0][0] ** 2 - 1
        seen = np.tril(np.ones((length, length), bool))[None].repeat(len(text), 0)
        seen[:, :, : text.shape[1]] &= real[:, None]
        mask, given = torch.from_numpy(seen | np.eye(length, dtype=bool))[:, None], torch.from_numpy(text)
    else:
        given = torch.from_numpy(LABELS)
    logits, _ = model(torch.from_numpy(tokens(settings)[:, :-1]), given, mask=mask)
    (logits * torch.from_numpy(cotangent(settings))).sum().backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    if 'caption_width' in settings:
        gradients['cls_embedding.uncond_embedding'] = embed.uncond_embedding.grad.numpy()
    del embed.forward
    model.eval()
    return {**gradients, 'logits': logits.detach().numpy()}


def generated(model: Any, settings: dict, interval: int = -1) -> dict[str, np.ndarray]:
    """The likeliest codes, one after another and guided, and the logits that they were chosen by."""
    import torch

    generate, logits = model.package.generate, []
    own = generate.sample

    def recorded(out: Any, **kwargs: Any) -> Any:
        logits.append(out[:, -1].numpy().copy())
        return own(out, **kwargs)

    cond, options = condition(settings), {'sample_logits': False, 'cfg_interval': interval}
    masks = None
    if 'caption_width' in settings:
        text, real = padded_before(settings, cond)
        given, masks = torch.from_numpy(text), torch.from_numpy(real.astype(np.float32))
    else:
        given = torch.from_numpy(LABELS)
    generate.sample = recorded
    try:
        count = settings['scales'][0][0] ** 2
        codes = generate.generate(model, given, count, masks, cfg_scale=GUIDANCE, **options)
    finally:
        generate.sample = own
    return {'codes': codes.numpy(), 'guided': np.stack(logits, 1)}
