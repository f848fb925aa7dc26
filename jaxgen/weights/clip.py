"""CLIP's published names (2103.00020): transformers' folders, and OpenCLIP's and OpenAI's own state dicts.

transformers has one class for both towers and two, with and without projection, for each alone. Before its
version 5 a tower alone was written under `text_model` or `vision_model`, which every version reads.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgen.encoders.clip import LOGIT_SCALE, Clip, TextTower, VisionTower
from jaxgen.weights.names import MATRIX, SAME, NameMap, Row, Transform, fused, linear, norm, patch_kernel
from jaxgen.weights.options import options

BOTH, TEXT, VISION = 'CLIPModel', 'CLIPTextModel', 'CLIPVisionModel'
PROJECTED = 'WithProjection'
CLASSES = (BOTH, TEXT, f'{TEXT}{PROJECTED}', VISION, f'{VISION}{PROJECTED}')
CLASSES += ('clip', 'clip_text_model', 'clip_vision_model')

_GELUS = {'quick_gelu': 'quick', 'gelu': 'erf'}
_OLD_EOS = 2  # what configs said before transformers mended it; its code then pools the highest id
_SHARED = {'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5, 'projection_dim': 512}
# Published option -> (argument of build, what it is when absent).
_TEXT = {
    'vocab_size': ('vocabulary', 49408),
    'max_position_embeddings': ('length', 77),
    'hidden_size': ('text_width', 512),
    'num_hidden_layers': ('text_depth', 12),
    'num_attention_heads': ('text_heads', 8),
    'intermediate_size': ('text_hidden', 2048),
}
_VISION = {
    'patch_size': ('patch', 32),
    'image_size': ('image', 224),
    'hidden_size': ('width', 768),
    'num_hidden_layers': ('depth', 12),
    'num_attention_heads': ('heads', 12),
    'intermediate_size': ('hidden', 3072),
}


def from_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of encoders.clip.build for transformers' config.json or open_clip_config.json."""
    if 'model_cfg' in published:
        return _from_open_clip(published['model_cfg'])
    kind = next(iter(published.get('architectures') or ()), None)
    if kind not in CLASSES:
        kind = {'clip_text_model': TEXT, 'clip_vision_model': VISION}.get(published.get('model_type'), BOTH)
    if kind == BOTH:
        text, vision = (_tower(_nested(published, name), name) for name in ('text', 'vision'))
        unlike = [name for name in ('gelu', 'epsilon') if text[name] != vision[name]]
        if unlike:
            name = unlike[0]
            raise ValueError(
                f"the text's {name} is {text[name]} and the image's {vision[name]}; they are one here."
            )
        return {**text, **vision, 'towers': 'both', 'projection': published.get('projection_dim', 512)}
    arguments = _tower(published, 'text' if kind.startswith(TEXT) else 'vision')
    if not kind.endswith(PROJECTED):
        del arguments['projection']
        arguments['project'] = False
    return arguments


def _nested(published: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A tower's config; one under the older name replaces it, as it does in transformers."""
    older = published.get(f'{name}_config_dict')
    return older if older is not None else published.get(f'{name}_config') or {}


def _tower(published: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The arguments for one tower. Options that no CLIP has, of which its configs are full, mean nothing."""
    keys = _TEXT if name == 'text' else _VISION
    defaults = _SHARED | {'eos_token_id': 49407} | {theirs: absent for theirs, (_, absent) in keys.items()}
    fixed = {} if name == 'text' else {'num_channels': 3}
    known = {option: value for option, value in published.items() if option in defaults or option in fixed}
    given = options(known, defaults=defaults, fixed=fixed)
    if given['hidden_act'] not in _GELUS:
        raise ValueError(f'hidden_act is {given["hidden_act"]!r}; choose from {", ".join(_GELUS)}.')
    arguments = {
        'towers': name,
        'projection': given['projection_dim'],
        'gelu': _GELUS[given['hidden_act']],
        'epsilon': given['layer_norm_eps'],
        **{ours: given[theirs] for theirs, (ours, _) in keys.items()},
    }
    if name == 'text' and given['eos_token_id'] != _OLD_EOS:
        arguments['eos'] = given['eos_token_id']
    return arguments


def _from_open_clip(config: Mapping[str, Any]) -> dict[str, Any]:
    text = options(
        config.get('text_cfg', {}),
        defaults={'context_length': 77, 'vocab_size': 49408, 'width': 512, 'heads': 8, 'layers': 12},
        fixed={'mlp_ratio': 4.0},
    )
    vision = options(
        config.get('vision_cfg', {}),
        defaults={
            'image_size': 224,
            'patch_size': 16,
            'layers': 12,
            'width': 768,
            'head_width': 64,
            'mlp_ratio': 4.0,
        },
        fixed={},
    )
    whole = {name: value for name, value in config.items() if name not in ('text_cfg', 'vision_cfg')}
    whole = options(whole, defaults={'embed_dim': 512, 'quick_gelu': False}, fixed={'custom_text': False})
    return {
        'towers': 'both',
        'projection': whole['embed_dim'],
        'gelu': 'quick' if whole['quick_gelu'] else 'erf',
        'vocabulary': text['vocab_size'],
        'length': text['context_length'],
        'text_width': text['width'],
        'text_depth': text['layers'],
        'text_heads': text['heads'],
        'patch': vision['patch_size'],
        'image': vision['image_size'],
        'width': vision['width'],
        'depth': vision['layers'],
        'heads': vision['width'] // vision['head_width'],
        'hidden': int(vision['width'] * vision['mlp_ratio']),
    }


def to_config(network: Clip) -> dict[str, Any]:
    """The config.json that transformers builds the same network from."""
    text, vision = network.text, network.vision
    if text and vision:
        return {
            'architectures': [BOTH],
            'model_type': 'clip',
            'projection_dim': text.projection,
            'logit_scale_init_value': float(LOGIT_SCALE),
            'text_config': _tower_config(text),
            'vision_config': _tower_config(vision),
        }
    tower, kind = (text, TEXT) if text else (vision, VISION)
    return {'architectures': [kind + (PROJECTED if tower.projection else '')], **_tower_config(tower)}


def _tower_config(tower: TextTower | VisionTower) -> dict[str, Any]:
    kind = 'text' if isinstance(tower, TextTower) else 'vision'
    keys = _TEXT if kind == 'text' else _VISION
    config = {
        'model_type': f'clip_{kind}_model',
        'hidden_act': next(theirs for theirs, ours in _GELUS.items() if ours == tower.gelu),
        'layer_norm_eps': tower.epsilon,
        **{theirs: getattr(tower, ours.removeprefix('text_')) for theirs, (ours, _) in keys.items()},
    }
    if tower.projection:
        config['projection_dim'] = tower.projection
    if kind == 'text':
        config['eos_token_id'] = _OLD_EOS if tower.eos is None else tower.eos
    return config


def inputs(network: Clip) -> tuple:
    """The least that the network's init takes: one token, one picture of one patch."""
    ids = np.zeros((1, 1), np.int32) if network.text else None
    side = network.vision.patch if network.vision else 0
    return (ids, np.zeros((1, side, side, 3), np.float32)) if side else (ids,)


def layouts(network: Clip) -> dict[str, NameMap]:
    """transformers' names, and OpenCLIP's, which are OpenAI's. A tower alone is also read out of both."""
    return {
        'transformers': NameMap(_transformers(network), ('*embeddings.position_ids', *_others(network))),
        'open_clip': NameMap(_open_clip(network), _others(network, open_clip=True)),
    }


def _others(network: Clip, open_clip: bool = False) -> tuple[str, ...]:
    """Published names of what a network without a tower or a projection lacks."""
    text, vision = network.text, network.vision
    names = () if text and vision else ('logit_scale',)
    if not open_clip:
        names += () if text else ('text_model.*', 'text_projection.weight')
        names += () if vision else ('vision_model.*', 'visual_projection.weight')
        names += ('text_projection.weight',) if text and not text.projection else ()
        return names + (('visual_projection.weight',) if vision and not vision.projection else ())
    # What OpenAI's files say of their sizes, and the causal mask.
    names += ('input_resolution', 'context_length', 'vocab_size', 'attn_mask')
    names += () if vision else ('visual.*',)
    names += ('visual.proj',) if vision and not vision.projection else ()
    if not text:
        names += ('transformer.*', 'token_embedding.weight', 'positional_embedding', 'ln_final.*')
    return names + (() if text and text.projection else ('text_projection',))


def _transformers(network: Clip) -> tuple[Row, ...]:
    text, vision = network.text, network.vision
    rows: list[Row] = []
    alone = ('',) if not (text and vision) else ()  # as version 5 writes it
    for prefix in ('text_model.', *alone) if text else ():
        rows += [
            Row(f'{prefix}embeddings.token_embedding.weight', ('text/token',), SAME),
            Row(f'{prefix}embeddings.position_embedding.weight', ('text/position',), SAME),
            *norm(f'{prefix}final_layer_norm', 'text/norm'),
            *_layers(f'{prefix}encoder.layers.{{i}}', 'text/blocks/stack/{i}'),
        ]
    for prefix in ('vision_model.', *alone) if vision else ():
        kernel = patch_kernel(vision.patch)
        rows += [
            Row(f'{prefix}embeddings.class_embedding', ('vision/class_token',), SAME),
            Row(f'{prefix}embeddings.patch_embedding.weight', ('vision/patch/kernel',), kernel),
            Row(f'{prefix}embeddings.position_embedding.weight', ('vision/position',), SAME),
            *norm(f'{prefix}pre_layrnorm', 'vision/pre_norm'),
            *norm(f'{prefix}post_layernorm', 'vision/norm'),
            *_layers(f'{prefix}encoder.layers.{{i}}', 'vision/blocks/stack/{i}'),
        ]
    return (*rows, *_heads(network, 'text_projection.weight', 'visual_projection.weight', MATRIX))


def _layers(theirs: str, ours: str) -> list[Row]:
    linears = {f'self_attn.{name[0]}_proj': f'attention/{name}' for name in ('query', 'key', 'value')}
    linears |= {'self_attn.out_proj': 'attention/out', 'mlp.fc1': 'mlp/up', 'mlp.fc2': 'mlp/down'}
    rows = [row for name, own in linears.items() for row in linear(f'{theirs}.{name}', f'{ours}/{own}')]
    return rows + [row for n in (1, 2) for row in norm(f'{theirs}.layer_norm{n}', f'{ours}/norm{n}')]


def _open_clip(network: Clip) -> tuple[Row, ...]:
    text, vision = network.text, network.vision
    rows: list[Row] = []
    if text:
        rows += [
            Row('token_embedding.weight', ('text/token',), SAME),
            Row('positional_embedding', ('text/position',), SAME),
            *norm('ln_final', 'text/norm'),
            *_resblocks('transformer.resblocks.{i}', 'text/blocks/stack/{i}'),
        ]
    if vision:
        rows += [
            Row('visual.class_embedding', ('vision/class_token',), SAME),
            Row('visual.conv1.weight', ('vision/patch/kernel',), patch_kernel(vision.patch)),
            Row('visual.positional_embedding', ('vision/position',), SAME),
            *norm('visual.ln_pre', 'vision/pre_norm'),
            *norm('visual.ln_post', 'vision/norm'),
            *_resblocks('visual.transformer.resblocks.{i}', 'vision/blocks/stack/{i}'),
        ]
    return (*rows, *_heads(network, 'text_projection', 'visual.proj', SAME))


def _resblocks(theirs: str, ours: str) -> list[Row]:
    kernels, biases = (
        tuple(f'{ours}/attention/{name}/{leaf}' for name in ('query', 'key', 'value'))
        for leaf in ('kernel', 'bias')
    )
    return [
        Row(f'{theirs}.attn.in_proj_weight', kernels, fused(3, True)),
        Row(f'{theirs}.attn.in_proj_bias', biases, fused(3, False)),
        *linear(f'{theirs}.attn.out_proj', f'{ours}/attention/out'),
        *linear(f'{theirs}.mlp.c_fc', f'{ours}/mlp/up'),
        *linear(f'{theirs}.mlp.c_proj', f'{ours}/mlp/down'),
        *(row for n in (1, 2) for row in norm(f'{theirs}.ln_{n}', f'{ours}/norm{n}')),
    ]


def _heads(network: Clip, text: str, vision: str, matrix: Transform) -> list[Row]:
    """The projections to the common space, and the scale of its logits."""
    rows = []
    if network.text and network.text.projection:
        rows.append(Row(text, ('text/projection/kernel',), matrix))
    if network.vision and network.vision.projection:
        rows.append(Row(vision, ('vision/projection/kernel',), matrix))
    if network.text and network.vision:
        rows.append(Row('logit_scale', ('logit_scale',), SAME))
    return rows
