"""What makes published networks a pipeline folder: its index, scheduler and tokenizer, written around them.

The networks themselves are `published.save_network`'s.
"""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from jaxgen.weights import published, schedulers

# Which part of a pipeline each of our networks is.
FOLDERS = {network: folder for folder, (_, network) in published.PLACES.items()}
LIBRARIES = {'model': 'diffusers', 'tokenizer': 'diffusers', 'text': 'transformers'}
VERSION = '0.42.1'  # of diffusers, whose layout this is
ALPHA_LENGTH = 120  # tokens that PixArt-alpha's pipeline reads; Sigma's reads more


def pipeline_class(config: Mapping[str, Any]) -> str:
    """The published class of a config's model and conditioner."""
    model, conditioner = config['model']['name'], config['conditioner']
    if model == 'pixart' and conditioner['name'] == 't5':
        alpha = conditioner.get('length', ALPHA_LENGTH) <= ALPHA_LENGTH
        return 'PixArtAlphaPipeline' if alpha else 'PixArtSigmaPipeline'
    if model == 'dit' and conditioner['name'] == 'labels':
        return 'DiTPipeline'
    raise ValueError(
        f"no published pipeline has the model '{model}' with the conditioner '{conditioner['name']}'; there "
        "are 'pixart' with 't5' (PixArt-alpha and Sigma) and 'dit' with 'labels' (DiT)."
    )


def check(config: Mapping[str, Any], networks: Mapping[str, Any]) -> None:
    """Refuse a recipe that cannot be published: its pipeline, networks and scheduler need names there."""
    pipeline_class(config)
    for network in networks.values():
        published.family_of(network.module).to_config(network.module)
    _scheduler(config)


def write_rest(
    folder: epath.Path, config: Mapping[str, Any], networks: Mapping[str, Any], conditioner: Any
) -> None:
    """All but the networks: the index, the scheduler, the tokenizer's files, the names of labels."""
    index: dict[str, Any] = {'_class_name': pipeline_class(config), '_diffusers_version': VERSION}
    scheduler, options = _scheduler(config)
    index['scheduler'] = ['diffusers', scheduler]
    _write(folder / 'scheduler' / 'scheduler_config.json', {**options, '_diffusers_version': VERSION})
    for name, network in networks.items():
        family = published.family_of(network.module)
        index[FOLDERS[name]] = [LIBRARIES[name], family.CLASSES[0]]
    if 'text' in networks:
        vocabulary = conditioner.vocabulary
        vocabulary.save(folder / 'tokenizer')
        settings = json.loads(vocabulary.files.get('tokenizer_config.json', '{}'))
        index['tokenizer'] = ['transformers', settings.get('tokenizer_class', 'T5Tokenizer')]
    else:
        index['id2label'] = {
            str(label): conditioner.describe({'label': label}) for label in range(conditioner.classes)
        }
    _write(folder / 'model_index.json', index)


def _scheduler(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if 'sampler' not in config:
        raise ValueError("the config has no section 'sampler', which the published scheduler is made of.")
    return schedulers.config_of(config['path'], config['prediction'], config['sampler'])


def _write(path: epath.Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + '\n')
