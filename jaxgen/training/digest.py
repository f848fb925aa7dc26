"""Digests of arrays: what a checkpoint is verified by, and what says whether two runs are the same.

Storage can lose a chunk or flip a bit and still read back as an array, so every leaf has a SHA-256 over its
dtype, shape and bytes, the same whatever mesh it lay on. Python hashes large buffers without its lock, so
leaves are hashed in threads, on views of the host's memory where there are any: that costs less than copying.
"""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxgen.layers.stack import canonical
from jaxgen.training.sharding import path_string


def fingerprint(tree: Any) -> str:
    """One digest of a tree's names and leaves, in its canonical layout.

    Sharded arrays give the digest of their whole; where processes hold parts, all of them call this together.
    """
    return total(digests(named_leaves(canonical(tree))))


def digests(named: Mapping[str, Any]) -> dict[str, str]:
    """The digest of each leaf by its name."""
    split = [name for name, leaf in named.items() if not getattr(leaf, 'is_fully_addressable', True)]
    whole = [name for name in named if name not in set(split)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(whole, pool.map(lambda name: _digest(named[name]), whole), strict=True))
    for name in split:  # in the same order everywhere: all processes gather together
        found[name] = _digest(multihost_utils.process_allgather(named[name], tiled=True))
    return found


def total(found: Mapping[str, str]) -> str:
    """The digest of named digests."""
    lines = ''.join(f'{name}\0{found[name]}\n' for name in sorted(found))
    return hashlib.sha256(lines.encode()).hexdigest()


def named_leaves(tree: Any) -> dict[str, Any]:
    """A tree's leaves by their paths, as 'params/model/bias'."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {path_string(path): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError('two leaves of the state have the same path; dictionary keys must differ as strings')
    return named


def _digest(leaf: Any) -> str:
    # The view lives no longer than this call: while it does, the array cannot be donated.
    array = np.asarray(leaf)
    digest = hashlib.sha256(f'{array.dtype}\0{array.shape}\0'.encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
