"""Published files by path: a file, the index of several, a folder that holds one of these, or 'hf://owner/name'.

What is opened are names and memory-mapped views. A checkpoint that holds several dictionaries gives the
averaged weights if it has them, else the current ones; 'file.pth#name' says which.
"""

import difflib
import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxgen.weights import hub, npz, pickled, safetensors

AVERAGED = ('ema', 'state_dict_ema', 'ema_state_dict', 'model_ema', 'ema_model', 'params_ema')
CURRENT = ('state_dict', 'model', 'module', 'model_state_dict', 'params', 'net', 'weights')
NESTED = 3  # a dictionary of weights lies this deep at most
PREFIXES = ('module.', '_orig_mod.', 'params/')  # of torch's wrappers and flax, when all names have them
INDEX = '.index.json'
SUFFIXES = ('.safetensors', '.bin', '.pth', '.pt', '.ckpt', '.npz')
POINTER = b'version https://git-lfs'
PIECE, PROBE, STRIDE = 2**20, 2**12, 2**24  # bytes of a file's ends and in between, and how far apart


def open_arrays(path: str) -> dict[str, np.ndarray]:
    """The published arrays of a path by name; nothing of them is in memory until it is looked at."""
    return _opened(path)[0]


def several(paths: str) -> list[str]:
    """The paths that are given as one, with commas between."""
    return [paths] if os.path.exists(os.path.expanduser(paths)) else paths.split(',')


def chosen(path: str) -> str:
    """What `open_arrays` takes of a path, in words."""
    return _opened(path)[1]


def resolve(path: str) -> str:
    """The local path of a path, with its '#name'; what is on the hub is fetched, the rest must exist."""
    place, part = _split(path)
    if place.startswith(hub.SCHEME):
        local = hub.fetched(place)
    elif '://' in place:
        raise ValueError(f'weights cannot be read from {place}; copy them to a local disk.')
    else:
        local = os.path.expanduser(place)
    if not os.path.exists(local):
        raise ValueError(f'there is no {local}; {_instead(pathlib.Path(local).absolute())}.')
    return f'{local}#{part}' if part else local


def fingerprint(path: str) -> str:
    """A hash of the names, the sizes, both ends and probes of a path's weight files: quick, for caches' keys.

    Probes lie so close that no large array can be another one unnoticed.
    """
    place, part = _split(resolve(path))
    top = pathlib.Path(place)
    if top.is_dir():
        kinds = (*SUFFIXES, INDEX)
        files = [file for file in sorted(top.rglob('*')) if file.is_file() and file.name.endswith(kinds)]
    else:
        files = [top, *(_shards(top) if top.name.endswith('.json') else ())]
        top = top.parent
    if not files:
        raise ValueError(f'there are no weights in {place}.')
    digest = hashlib.sha256(part.encode())
    for file in files:
        size = file.stat().st_size
        digest.update(f'\n{file.relative_to(top).as_posix()} {size}\n'.encode())
        with file.open('rb') as stream:
            probes = [(start, PROBE) for start in range(STRIDE, size, STRIDE)]
            for start, length in ((0, PIECE), *probes, (max(0, size - PIECE), PIECE)):
                stream.seek(start)
                digest.update(stream.read(length))
    return digest.hexdigest()


def manifest(folder: str) -> dict[str, str]:
    """The SHA-256 of every file of a folder, by its path in it."""
    top = pathlib.Path(folder)
    hashes, found = {}, sorted(file for file in top.rglob('*') if file.is_file())
    for file in tqdm(found, 'hash files', unit='file', delay=safetensors.PATIENCE):
        with file.open('rb') as stream:
            hashes[file.relative_to(top).as_posix()] = hashlib.file_digest(stream, 'sha256').hexdigest()
    return hashes


def _split(path: str) -> tuple[str, str]:
    """A path and its '#name'; a file that is itself called so is not cut."""
    if os.path.exists(os.path.expanduser(path)):
        return path, ''
    place, cut, part = path.rpartition('#')
    return (place, part) if cut else (path, '')


def _opened(path: str) -> tuple[dict[str, np.ndarray], str]:
    place, part = _split(resolve(path))
    file = pathlib.Path(place)
    if file.is_dir():
        file = file / _chosen_file(file)
    said = str(file)
    if file.name.endswith('.json'):
        if part:
            raise ValueError(f'{file} lists the arrays of one network; #{part} is not needed.')
        arrays = _indexed(file)
        said += f' ({len(_shards(file))} files)'
    else:
        arrays, inside = _read(file, part)
        said += f', its {inside}' if inside else ''
    if prefix := _common_prefix(list(arrays)):
        said += f", without the '{prefix}' before all names"
    return {name.removeprefix(prefix): array for name, array in arrays.items()}, said


def _chosen_file(folder: pathlib.Path) -> str:
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    try:
        name = hub.choose(names)
    except ValueError as error:
        raise ValueError(f'{folder}: {error}') from None
    if name is None:
        inner = sorted(file.name for file in folder.iterdir() if file.is_dir())
        holds = f'; it has the folders {", ".join(inner)}' if inner else ''
        raise ValueError(
            f'there are no weights in {folder} ({", ".join(SUFFIXES)} or an index of some){holds}.'
        )
    return name


def _read(file: pathlib.Path, part: str = '') -> tuple[dict[str, np.ndarray], str]:
    """A file's arrays, and which dictionary of it they are."""
    with file.open('rb') as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise ValueError(f'{file} is a pointer of Git LFS, not the file; fetch it with `git lfs pull`.')
    if file.suffix not in SUFFIXES:
        raise ValueError(f'{file} is not of a kind that can be read: {", ".join(SUFFIXES)}, {INDEX}.')
    if file.suffix not in ('.safetensors', '.npz'):
        return _dictionary(file, pickled.read(file), part)
    if part:
        raise ValueError(f'{file} is one dictionary of arrays; it has no #{part}.')
    return (npz if file.suffix == '.npz' else safetensors).read(file), ''


def _indexed(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of all shards, which must be those that the index lists."""
    places, shards = _weight_map(file), _shards(file)
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise ValueError(
            f'{file.parent} is half-downloaded: {len(absent)} of {len(shards)} files are missing, '
            f'{_listed(absent)}.'
        )
    arrays: dict[str, np.ndarray] = {}
    for shard in shards:
        found = _read(shard)[0]
        wanted = {name for name, place in places.items() if place == shard.name}
        if lacking := sorted(wanted - found.keys()):
            raise ValueError(f'{shard} lacks what {file.name} says it holds: {_listed(lacking)}.')
        if further := sorted(found.keys() - wanted):
            raise ValueError(f'{shard} holds what {file.name} does not list: {_listed(further)}.')
        arrays |= found
    return {name: arrays[name] for name in places}


def _shards(file: pathlib.Path) -> list[pathlib.Path]:
    return [file.with_name(name) for name in sorted(set(_weight_map(file).values()))]


def _weight_map(file: pathlib.Path) -> dict[str, str]:
    try:
        index = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{file} is no JSON: {error}.') from None
    places = index.get('weight_map') if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError(f'{file} has no weight_map: it is not the index of a network in several files.')
    for place in places.values():
        named = isinstance(place, str) and pathlib.PurePath(place).name == place
        if not named or not place.endswith(SUFFIXES):
            raise ValueError(f'{file} lists {place!r:.200}, which is not a file beside it.')
    return places


def _dictionary(file: pathlib.Path, tree: Any, part: str) -> tuple[dict[str, np.ndarray], str]:
    """The dictionary of weights in a checkpoint, and its name there."""
    tables = [name for name in tree if isinstance(tree[name], dict)] if isinstance(tree, dict) else []
    if part and part not in tables:
        raise ValueError(f'{file} has no dictionary {part!r}; it has {_listed(tables) or "none"}.')
    start = tree[part] if part else tree
    path = _path_to_weights(start, NESTED)
    if path is None:
        raise ValueError(
            f'{file} has no dictionary of weights that is known by its name{_odd(start)}; it has '
            f'{_listed(tables) or "none"}.'
        )
    for name in path:
        start = start[name]
    said = '#'.join((part, *path) if part else path)
    arrays = {name: value for name, value in start.items() if isinstance(value, np.ndarray)}
    return arrays, f"'{said}' of {_listed(tables)}" if said else ''


def _path_to_weights(tree: Any, depth: int) -> tuple[str, ...] | None:
    """The names that lead to the averaged weights, or else to the current ones."""
    if not isinstance(tree, dict):
        return None
    if any(isinstance(value, np.ndarray) for value in tree.values()) and not _odd(tree):
        return ()
    for name in (*AVERAGED, *CURRENT) if depth else ():
        path = _path_to_weights(tree.get(name), depth - 1)
        if path is not None:
            return (name, *path)
    return None


def _odd(tree: Any) -> str:
    """What keeps a dictionary from being one of weights alone, in words."""
    if not isinstance(tree, dict):
        return f': it is a {type(tree).__name__}'
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray | int | float | None):
            return f': {name!r:.100} is a {type(value).__name__}'
    return ''


def _common_prefix(names: list[str]) -> str:
    """What torch's wrappers put before all names."""
    common, found = os.path.commonprefix(names), ''
    while prefix := next((each for each in PREFIXES if common.startswith(each, len(found))), ''):
        found += prefix
    return found


def _instead(path: pathlib.Path) -> str:
    """What is where a path would be, in words."""
    while not path.parent.is_dir():
        path = path.parent
    there = sorted(os.listdir(path.parent))
    there = difflib.get_close_matches(path.name, there, 1) or there
    return f'{path.parent} has {_listed(there) or "nothing"}'


def _listed(names: list[Any], shown: int = 8) -> str:
    more = f' and {len(names) - shown} more' if len(names) > shown else ''
    return ', '.join(map(str, names[:shown])) + more
