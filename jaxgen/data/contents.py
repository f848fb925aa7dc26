"""What tells a data set from another one: for processes that each open it by themselves."""

import hashlib
from typing import Any

import numpy as np

from jaxgen.data.source import Source


def contents(source: Source) -> dict[str, Any]:
    """Its length, its description, and a hash of three of its examples, which are all that is read."""
    count, digest = len(source), hashlib.sha256()
    for index in sorted({0, count // 2, count - 1}) if count else ():
        for name, value in sorted(source[index].items()):
            plain = not isinstance(value, np.ndarray)
            digest.update(f'{name} {value!r}'.encode() if plain else np.ascontiguousarray(value).tobytes())
    return {
        'the number of training examples': count,
        'the description of the data': source.description,
        'a hash of training examples': digest.hexdigest()[:12],
    }
