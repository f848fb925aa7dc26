"""The small CLIPs and DINOv2s that golden files and live parity tests share, ours and the references'."""

import copy
import json
import pathlib
import sys
import tempfile
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from golden import authors, seeded

from jaxgen.encoders import clip, dinov2
from jaxgen.weights import clip as clip_names
from jaxgen.weights import dinov2 as dinov2_names
from jaxgen.weights.names import to_jaxgen, to_published

FAMILIES = {'clip': (clip, clip_names), 'dinov2': (dinov2, dinov2_names)}

_TEXT = {'vocabulary': 50, 'length': 8, 'text_width': 24, 'text_depth': 2, 'text_heads': 3, 'text_hidden': 96}
_VISION = {'patch': 4, 'image': 16, 'width': 32, 'depth': 2, 'heads': 4, 'hidden': 40}
CLIP_CASES = {
    'quick': {**_TEXT, **_VISION, 'projection': 20, 'gelu': 'quick'},
    'erf': {**_TEXT, **_VISION, 'projection': 20, 'gelu': 'erf', 'eos': 40},
}
_SMALL = {'patch': 4, 'image': 16, 'width': 32, 'depth': 2, 'heads': 4}
# Of pictures: 16 x 16 is that of the position tables, the others resize them.
CLIP_PICTURES = {'quick': (16, 16), 'erf': (12, 24)}
DINOV2_PICTURES = {'plain': (20, 32), 'giant': (16, 16), 'registers': (12, 24)}
DINOV2_CASES = {
    'plain': _SMALL,
    'giant': _SMALL | {'swiglu': True},
    'registers': _SMALL | {'registers': 2},
}
_TWO = {'text_depth': 2, 'depth': 2, 'vocabulary': 1000}
FULL = {
    'clip': {'L/14': {'size': 'L/14', **_TWO}, 'H/14': {'size': 'H/14', **_TWO, 'eos': 999}},
    'dinov2': {
        'B': {'size': 'B', 'depth': 2},
        'g with registers': {'size': 'g', 'depth': 2, 'registers': 4},
    },
}


def ids(length: int = 8, end: int = 40) -> np.ndarray:
    """Token ids of three texts that end at unlike places, filled up with their end."""
    drawn = (np.abs(seeded.normal('ids', (3, length))) * 1000).astype(np.int32) % end
    for row, place in zip(drawn, (length - 1, 2, length // 2)):
        row[place:] = end
    return drawn


def pixels(size: tuple[int, int]) -> np.ndarray:
    """Seeded normalised pixels of two pictures."""
    return seeded.normal('pixels', (2, *size, 3))


def build(family: str, settings: dict) -> tuple[Any, dict]:
    """(network, its parameters by seeded published weights, none of them zero)."""
    rooms, names = FAMILIES[family]
    network = rooms.build(**settings)
    abstract = jax.eval_shape(network.init, jax.random.key(0), *names.inputs(network))['params']
    table = names.layouts(network)['transformers']
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    shapes = {name: array.shape for name, array in to_published(table, empty).items()}
    return network, to_jaxgen(table, seeded.weights(shapes), abstract)


def transformers_model(family: str, network: Any, params: dict) -> Any:
    """transformers' model, read from a folder that holds what we write of the network."""
    import transformers
    from safetensors.numpy import save_file

    names = FAMILIES[family][1]
    config = names.to_config(network)
    weights = to_published(names.layouts(network)['transformers'], params)
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / 'config.json').write_text(json.dumps(config))
        arrays = {name: np.array(array, order='C') for name, array in weights.items()}
        save_file(arrays, f'{folder}/model.safetensors', {'format': 'pt'})
        model, report = getattr(transformers, config['architectures'][0]).from_pretrained(
            folder, output_loading_info=True
        )
    assert not any(report.values()), report
    return model.eval()


def open_clip_model(network: Any, params: dict) -> Any:
    """OpenCLIP's model with the same weights under its own names. It needs torchvision for nothing here."""
    import torch
    import transformers  # noqa: F401, which would take the stand-ins for torchvision

    for name in ('', '.ops', '.ops.misc', '.transforms', '.transforms.functional', '.datasets'):
        sys.modules.setdefault(f'torchvision{name}', mock.MagicMock())
    from open_clip.model import CLIP

    text, vision = network.text, network.vision
    model = CLIP(
        embed_dim=text.projection,
        vision_cfg={
            'image_size': vision.image,
            'patch_size': vision.patch,
            'width': vision.width,
            'layers': vision.depth,
            'head_width': vision.width // vision.heads,
            'mlp_ratio': vision.hidden / vision.width,
        },
        text_cfg={
            'context_length': text.length,
            'vocab_size': text.vocabulary,
            'width': text.width,
            'heads': text.heads,
            'layers': text.depth,
        },
        quick_gelu=text.gelu == 'quick',
    )
    weights = to_published(clip_names.layouts(network)['open_clip'], params)
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
    return model.eval()


def authors_dinov2(network: Any, params: dict) -> Any:
    """The authors' DINOv2 of JAXGEN_DINOV2, a checkout of facebookresearch/dinov2, with the same weights."""
    import functools

    import torch

    sys.path.insert(0, authors.checkout('JAXGEN_DINOV2'))
    try:
        from dinov2.layers import MemEffAttention, NestedTensorBlock
        from dinov2.models.vision_transformer import DinoVisionTransformer
    finally:
        sys.path.pop(0)
    model = DinoVisionTransformer(
        img_size=network.image,
        patch_size=network.patch,
        embed_dim=network.width,
        depth=network.depth,
        num_heads=network.heads,
        init_values=1.0,
        ffn_layer='swiglufused' if network.swiglu else 'mlp',
        block_chunks=0,
        num_register_tokens=network.registers,
        interpolate_antialias=network.antialias,
        interpolate_offset=network.offset,
        block_fn=functools.partial(NestedTensorBlock, attn_class=MemEffAttention),
    )
    weights = to_published(dinov2_names.layouts(network)['authors'], params)
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
    return model.eval()


def run_clip(network: Any, params: dict, size: tuple[int, int], tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What ours makes of the shared texts and pictures, with the pixels' gradient of the logits."""
    before = tuple(f'{tower.depth - 2}.out' for tower in (network.text, network.vision))

    def read(params: dict, x: jax.Array) -> tuple:
        variables = {'params': params}
        text = network.apply(variables, tokens, None, (before[0],), method='read_text')
        image = network.apply(variables, x, (before[1],), method='read_image')
        logits = network.apply(variables, image.embedding, text.embedding, method='logits')
        return jnp.sum(logits * seeded.normal('logits', (2, 3))), (logits, text, image)

    gradient = jax.jit(jax.value_and_grad(read, (0, 1), has_aux=True))
    (_, (logits, text, image)), (by_params, by_pixels) = gradient(params, pixels(size))
    found = {'logits': logits, 'by_pixels': by_pixels}
    for name, reading, layer in (('text', text, before[0]), ('image', image, before[1])):
        found |= {f'{name}/tokens': reading.tokens, f'{name}/pooled': reading.pooled}
        found |= {f'{name}/embedding': reading.embedding, f'{name}/before': reading.captured[layer]}
    return {name: np.asarray(a) for name, a in found.items()} | _gradients('clip', network, by_params)


def run_transformers_clip(model: Any, size: tuple[int, int], tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The same of transformers' CLIPModel."""
    import torch

    x = torch.from_numpy(pixels(size).transpose(0, 3, 1, 2).copy()).requires_grad_()
    options = {'interpolate_pos_encoding': True, 'output_hidden_states': True}
    out = model(torch.from_numpy(tokens), x, **options)
    (out.logits_per_image * torch.from_numpy(seeded.normal('logits', (2, 3)))).sum().backward()
    found = {'logits': out.logits_per_image, 'by_pixels': x.grad.permute(0, 2, 3, 1)}
    for name, reading in (('text', out.text_model_output), ('image', out.vision_model_output)):
        tower = model.text_model if name == 'text' else model.vision_model
        last = reading.last_hidden_state
        end = tokens.argmax(1) if name == 'text' else np.zeros(len(last), int)
        pooled = last[torch.arange(len(last)), torch.from_numpy(end)]
        found |= {f'{name}/tokens': last, f'{name}/embedding': reading.pooler_output}
        found |= {f'{name}/pooled': pooled if name == 'text' else tower.post_layernorm(pooled)}
        found |= {f'{name}/before': reading.hidden_states[-2]}
    return {name: tensor.detach().numpy() for name, tensor in found.items()} | _torch_gradients(model)


def run_dinov2(network: Any, params: dict, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Features of the shared pictures, and the gradient of their sum under a seeded weight."""
    before = f'{network.depth - 2}.out'

    def read(params: dict, x: jax.Array) -> tuple:
        features = network.apply({'params': params}, x, None, (before,))
        parts = features.class_token[:, None], features.registers, features.patches
        tokens = jnp.concatenate(parts, axis=1)
        return jnp.sum(tokens * seeded.normal('tokens', tokens.shape)), (tokens, features.captured[before])

    gradient = jax.jit(jax.value_and_grad(read, (0, 1), has_aux=True))
    (_, (tokens, captured)), (by_params, by_pixels) = gradient(params, pixels(size))
    found = {'tokens': tokens, 'before': captured, 'by_pixels': by_pixels}
    return {name: np.asarray(a) for name, a in found.items()} | _gradients('dinov2', network, by_params)


def run_transformers_dinov2(model: Any, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The same of transformers' model."""
    import torch

    x = torch.from_numpy(pixels(size).transpose(0, 3, 1, 2).copy()).requires_grad_()
    out = model(x, output_hidden_states=True)
    tokens = out.last_hidden_state
    (tokens * torch.from_numpy(seeded.normal('tokens', tuple(tokens.shape)))).sum().backward()
    found = {'tokens': tokens, 'before': out.hidden_states[-2], 'by_pixels': x.grad.permute(0, 2, 3, 1)}
    return {name: tensor.detach().numpy() for name, tensor in found.items()} | _torch_gradients(model)


def _gradients(family: str, network: Any, by_params: dict) -> dict[str, np.ndarray]:
    table = FAMILIES[family][1].layouts(network)['transformers']
    return {f'by/{name}': np.asarray(a) for name, a in to_published(table, by_params).items()}


def _torch_gradients(model: Any) -> dict[str, np.ndarray]:
    """Under the names that the model is saved by, which need not be those of its modules."""
    import torch

    holder = copy.deepcopy(model)
    for own, parameter in zip(holder.parameters(), model.parameters()):
        own.data = torch.zeros_like(own) if parameter.grad is None else parameter.grad.clone()
    return {f'by/{name}': array for name, array in saved(holder)[1].items()}


def saved(model: Any) -> tuple[dict, dict[str, np.ndarray]]:
    """The config and the arrays that a model of transformers is saved as."""
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((pathlib.Path(folder) / 'config.json').read_text())
        return config, load_file(f'{folder}/model.safetensors')
