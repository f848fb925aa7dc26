"""Configs around published weights: the architecture and what it was trained to say come from their folder.

The folder decides the sections model, tokenizer, conditioner, path and prediction, the resolution, and where
each network's parameters are read from; how to sample, to train and on what stays the config's. Without a
config a whole one is made, which draws as the folder's own pipeline does and trains on a folder of images.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxgen import config as configs
from jaxgen.weights import files, published

Config = dict[str, Any]

INDEX = 'model_index.json'
# How many steps and how much guidance the published pipelines take.
SAMPLING = {'pixart': {'steps': 20, 'guidance': 4.5}, 'dit': {'steps': 50, 'guidance': 4.0}}


def configured(config: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """The config ({}: a new one) for published weights, with 'section.key=value' set.

    source: a pipeline's folder; or for a config that has all else the model alone, and networks beside it.
    """
    folder = files.resolve(source)
    if (pathlib.Path(folder) / INDEX).is_file():
        sections, sources = published.sections(folder)
        sections['prediction']['learned_variance'] = sections['model'].get('learned_variance', False)
        sections['data'] = {'resolution': _resolution(sections, sources)}
        config = config or _complete(sections)
    elif config:
        sections, sources = published.side_by_side(folder)
    else:
        raise ValueError(
            f'{source} has no {INDEX}, so it does not say what goes with the model; give a --config, or a '
            'folder as diffusers saves its pipelines.'
        )
    return configs.overridden(_merged(config, sections, sources, source), overrides)


def _merged(
    config: Mapping[str, Any], sections: Mapping[str, Any], sources: Mapping[str, str], source: str
) -> Config:
    merged = dict(config)
    for name in ('model', 'tokenizer', 'conditioner', 'path', 'prediction'):
        if name not in sections:
            continue
        ours, theirs = config.get(name, {}), sections[name]
        if ours.get('name', theirs.get('name')) != theirs.get('name'):
            if name == 'model':
                raise ValueError(
                    f"{source} holds the model '{theirs['name']}', and the config's is '{ours['name']}'; use "
                    'a config of that model, or leave --config out.'
                )
            ours = {}
        merged[name] = {**ours, **theirs}
    merged['data'] = {**config.get('data', {}), **sections.get('data', {})}
    networks = {name: dict(section) for name, section in config.get('networks', {}).items()}
    for name, place in sources.items():
        networks[name] = {**networks.get(name, {}), 'init_from': place}
    return {**merged, 'networks': networks}


def _complete(sections: Mapping[str, Any]) -> Config:
    """The rest of a config: the published way to draw, and fine-tuning on a folder of images."""
    model, devices = sections['model']['name'], jax.device_count()
    captions = sections['conditioner']['name'] == 't5'
    discrete = sections['prediction']['learned_variance'] or sections['path']['name'] == 'vp'
    config = {
        'data': {'name': 'folder', 'path': 'images', 'captions': captions},
        'model': {'name': model},
        'conditioner': {'name': sections['conditioner']['name']},
        'tokenizer': {'name': sections['tokenizer']['name']},
        'objective': {'name': 'diffusion', 'times': 'discrete' if discrete else 'uniform', 'drop': 0.1},
        'sampler': {**sections['sampler'], **SAMPLING[model]},
        'optimizer': {'name': 'adamw', 'learning_rate': 2e-5, 'schedule': 'constant', 'warmup': 100},
        'mesh': {'fsdp': -1},
        'train': {'steps': 1000, 'batch': 4 * devices, 'sample_batch': 4 * devices},
    }
    if jax.default_backend() != 'cpu':
        for section in ('model', 'tokenizer', 'conditioner')[: 3 if captions else 2]:
            config[section]['dtype'] = 'bfloat16'
        config['networks'] = {'text': {'dtype': 'bfloat16'}} if captions else {}
    return config


def _resolution(sections: Mapping[str, Any], sources: Mapping[str, str]) -> int:
    """The side in pixels that a published generator is for."""
    config = json.loads((pathlib.Path(sources['model']) / 'config.json').read_text())
    return config['sample_size'] * 2 ** (len(sections['tokenizer']['widths']) - 1)
