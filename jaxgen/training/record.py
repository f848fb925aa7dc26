"""What lies beside a checkpoint's arrays, and what a run asks of it.

The record names every leaf with its dtype, shape and digest, the versions that wrote it, and the config it
was trained by, so that a checkpoint of another run is refused with the first things that differ.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import jaxgen
from jaxgen.training.digest import digests, total

log = logging.getLogger('jaxgen')
LAYOUT = 2
SHOWN = 5

# What changes the numbers of a run: all of these sections, and these keys of the training loop's.
SECTIONS = (
    'data',
    'tokenizer',
    'conditioner',
    'path',
    'prediction',
    'model',
    'networks',
    'objective',
    'optimizer',
    'ema',
    'guard',
)
TRAIN = ('batch', 'seed', 'accumulate', 'flip')
# But not where the data lies, what a step may cost, or where parameters do.
FREE = re.compile(r'data\.(path|cache|unreadable_limit)|.*\.remat|networks\..*\.rules')


def make(named: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The record of named leaves, with a digest of itself."""
    found = digests(named)
    record = {
        'layout': LAYOUT,
        'jaxgen': jaxgen.__version__,
        'jax': jax.__version__,
        'fingerprint': total(found),
        'leaves': {name: [str(leaf.dtype), list(leaf.shape), found[name]] for name, leaf in named.items()},
        'metadata': dict(metadata),
    }
    return {**record, 'digest': _digest(record)}


def is_whole(record: Mapping[str, Any]) -> bool:
    """Whether a record is what `make` made."""
    return record.get('digest') == _digest(record)


def other_layout(record: Mapping[str, Any]) -> str:
    """What is said of a record of another layout."""
    return (
        f'has checkpoint layout {record.get("layout")}, jaxgen {jaxgen.__version__} reads layout {LAYOUT}; '
        f'use the version that wrote it: {record.get("jaxgen")}'
    )


def misfits(wanted: Mapping[str, Any], leaves: Mapping[str, Any], partial: bool) -> str:
    """How a record's leaves differ from those wanted; '' where they do not."""
    missing = [name for name in wanted if name not in leaves]
    unexpected = [] if partial else [name for name in leaves if name not in wanted]
    misshapen = []
    for name in wanted.keys() & leaves.keys():
        dtype, shape, _ = leaves[name]
        leaf = wanted[name]
        if tuple(shape) != tuple(leaf.shape) or not _converts(dtype, leaf.dtype):
            misshapen.append(f'{name} (stored {dtype}{shape}, wanted {leaf.dtype}{list(leaf.shape)})')
    problems = {'missing': missing, 'unexpected': unexpected, 'misshapen': misshapen}
    return '; '.join(f'{kind} ({len(names)}): {_first(names)}' for kind, names in problems.items() if names)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The keys in which two configs train differently, the first few with their values; '' where none."""
    old, new = _telling(before), _telling(now)
    differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return _first([f'{key} (was {_said(old, key)}, is {_said(new, key)})' for key in differing])


def compare_tokenizers(recipe: Any, before: Mapping[str, Any], where: str) -> None:
    """Warn where the recipe's tokenizer, taken from `where`, has another section than the config there.

    What the tokenizer names as `loose` may be any.
    """
    loose = getattr(recipe.tokenizer, 'loose', frozenset())

    def section(config: Mapping[str, Any]) -> Mapping[str, Any]:
        said = dict(config.get('tokenizer', {}))
        if 'bottleneck' in said:
            said['bottleneck'] = {key: said['bottleneck'][key] for key in {*said['bottleneck']} - loose}
        return {'tokenizer': said}

    if differing := differences(section(before), section(recipe.config)):
        log.warning(
            'The tokenizer is of %s, where its section in the config was another: %s.', where, differing
        )


def _telling(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {section: config[section] for section in SECTIONS if section in config}
    train = {key: value for key, value in config.get('train', {}).items() if key in TRAIN}
    flat = _flat(json.loads(json.dumps({**kept, 'train': train})))
    return {key: value for key, value in flat.items() if not FREE.fullmatch(key)}


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {f'{prefix}{key}': value}
    return flat


def _said(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else 'not set'


def _first(names: list[str]) -> str:
    return ', '.join(sorted(names)[:SHOWN]) + (' ...' if len(names) > SHOWN else '')


def _digest(record: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps({name: value for name, value in record.items() if name != 'digest'}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _converts(stored: str, wanted: Any) -> bool:
    stored = jnp.dtype(stored)
    both_real = jnp.issubdtype(stored, jnp.floating) and jnp.issubdtype(wanted, jnp.floating)
    return stored == wanted or both_real
