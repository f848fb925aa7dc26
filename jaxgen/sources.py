"""A recipe's data: opened when they are asked for, and refused where its parts cannot read them.

`data.cache` says that what the frozen networks make of the data lies in a folder already (data/cached.py).
All else of a config stays as it was: a run on a cache is the run on its pictures, without the encoding.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxgen import artifact
from jaxgen.config import Dtype
from jaxgen.data import cached
from jaxgen.objectives import Objective

Section = Mapping[str, Any]
# What says nothing of how a part encodes.
_SILENT = ('parent', 'name', 'trains', 'reads')


@dataclasses.dataclass(frozen=True)
class Cache:
    """The keys of section data that are not its source's: a cache's folder, and how it keeps latents."""

    cache: str = ''
    cache_dtype: Dtype = 'float16'


KEYS = tuple(field.name for field in dataclasses.fields(Cache))


def own(section: Section) -> dict[str, Any]:
    """The keys of section data that are its source's."""
    return {key: value for key, value in section.items() if key not in KEYS}


def opener(config: Mapping[str, Section], cache: Cache, make: Callable[[Section], Any]) -> Callable:
    """`source(split)` opens 'train' or 'held_out', each once, from the cache or by `make(section)`."""
    opened: dict[str, Any] = {}
    data, held_out = config['data'], config.get('held_out', {})
    if held_out.get('resolution', data['resolution']) != data['resolution']:
        raise ValueError(
            f'held_out.resolution differs from data.resolution, {data["resolution"]}; leave it out.'
        )

    def source(split: str) -> Any:
        if split not in opened:
            try:
                if cache.cache:
                    opened[split] = cached.build(
                        cache.cache, split, {'data': own(data), 'held_out': held_out}
                    )
                else:
                    opened[split] = make({**own(data), **(held_out if split == 'held_out' else {})})
            except OSError as error:
                raise ValueError(f"the data for '{split}' cannot be read: {error}.") from error
        return opened[split]

    return source


def fitting(
    source: Callable[[str], Any], conditioner: Any, objective: Objective, tokenizer: Any, cache: Cache
) -> Callable[[str], Any]:
    """The same sources, refused where they have not what the conditioner and the objective read."""

    def checked(split: str) -> Any:
        opened = source(split)
        has = opened.description
        if conditioner.reads == 'caption' and not has.captions:
            raise ValueError('the conditioner reads captions and the data has none; use data with captions.')
        if conditioner.reads == 'label' and (has.classes or 0) != conditioner.classes:
            raise ValueError(
                f'the conditioner has {conditioner.classes} classes and the data {has.classes or "none"}; '
                'set conditioner.classes, or use data with class labels.'
            )
        wanted = encoding(tokenizer, conditioner, cache)
        if has.encoding and (differs := artifact.difference(has.encoding, wanted, 'encoding')):
            raise ValueError(
                f'{cache.cache} was encoded otherwise: {differs}. Put it back, or make a cache of this '
                'config with --mode=cache.'
            )
        for name in objective.reads:
            if name not in has.arrays:
                raise ValueError(
                    f"the objective reads '{name}' of every example, and the data has "
                    f'{", ".join(has.arrays)}; use data and an objective that fit.'
                )
        if has.latent and has.latent != tokenizer.latent:
            raise ValueError(
                f'the data holds latents of shape {has.latent}, and the tokenizer makes {tokenizer.latent}; '
                'use the tokenizer that they were made with.'
            )
        return opened

    return checked


def encoding(tokenizer: Any, conditioner: Any, cache: Cache) -> dict[str, Any]:
    """What decides the arrays of a cache, but for the weights; whoever reads one must have the same."""
    text = _said(conditioner) if hasattr(conditioner, 'features') else None
    return {'tokenizer': _said(tokenizer), 'text': text, 'dtype': cache.cache_dtype}


def blank(tokenizer: Any, conditioner: Any, cache: Cache) -> dict[str, np.ndarray]:
    """What an example of a cache holds in place of its picture, by shape and type."""
    prepared = {
        name: np.zeros(like.shape, kept_in(like.dtype, cache, tokenizer))
        for name, like in tokenizer.prepared.items()
    }
    return prepared | (conditioner.blank if hasattr(conditioner, 'features') else {})


def kept_in(dtype: Any, cache: Cache, tokenizer: Any) -> np.dtype:
    """The dtype that a cache keeps an array of the tokenizer's in.

    Bytes stay bytes, and what codes are made of stays as it is: rounded, it would make others.
    """
    if np.issubdtype(dtype, np.integer) or 'codes' in getattr(tokenizer, 'provides', {}):
        return np.dtype(dtype)
    return cached.dtype(cache.cache_dtype)


def _said(part: Any) -> Any:
    """A part's settings as a table that JSON can hold."""
    if dataclasses.is_dataclass(part):
        fields = [field.name for field in dataclasses.fields(part) if field.name not in _SILENT]
        return {name: _said(getattr(part, name)) for name in fields}
    if isinstance(part, Mapping):
        return {str(name): _said(value) for name, value in part.items()}
    if isinstance(part, list | tuple):
        return [_said(value) for value in part]
    if isinstance(part, bytes):
        return hashlib.sha256(part).hexdigest()
    if callable(part) and not isinstance(part, type):  # what a part does follows from its settings
        return ''
    return part if isinstance(part, str | int | float | None) else str(np.dtype(part))
