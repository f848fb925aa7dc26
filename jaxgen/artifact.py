"""Artifacts: what an offline search found, on disk, with a note of what it was found for.

A folder of arrays, cut along their first axis into parts, and `artifact.json`: the kind, what it was found
for and its hash, how it was found. The JSON is written last, so that a folder is an artifact when it is
whole; a search that was stopped goes on after its last whole part. Whoever loads an artifact says what
for, and anything else is refused.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

HEADER, DRAFT = 'artifact.json', 'unfinished.json'
FORMAT = 1


class Rows(Sequence):
    """An array in parts along its first axis; a local one stays on disk, and rows are read as asked for."""

    def __init__(self, parts: Sequence[np.ndarray]):
        self.parts = tuple(parts)
        self.shape = (sum(map(len, parts)), *parts[0].shape[1:])
        self.dtype = parts[0].dtype
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f'row {index} of {len(self)}')
        part = int(np.searchsorted(self._ends, index, side='right'))
        return np.array(self.parts[part][index - self._ends[part]])  # a copy: the device may alias it


@dataclasses.dataclass(frozen=True)
class Artifact:
    """The arrays by name, what they were found for, and notes of how."""

    kind: str
    found_for: Mapping[str, Any]
    arrays: Mapping[str, Rows]
    notes: Mapping[str, Any]


def networks(params: Mapping[str, Any], fingerprint: Callable[[Any], str]) -> dict[str, Any]:
    """What names networks and their parameters, for `found_for`: leaves' shapes and a fingerprint of each."""
    return {
        name: {'shapes': _shapes(tree), 'fingerprint': fingerprint(tree)} for name, tree in params.items()
    }


def write(
    folder: epath.PathLike,
    kind: str,
    found_for: Mapping[str, Any],
    parts: Callable[[int], Iterable[Mapping[str, np.ndarray]]],
    notes: Mapping[str, Any],
    writes: bool = True,
) -> None:
    """Write the arrays of `parts(first)`, which yields them from row `first` on, and then the header.

    A complete artifact of the same search is left as it is; one of another is refused, not overwritten.
    Where several processes search together, all of them call this and one `writes`.
    """
    folder = epath.Path(folder)
    about = {'format': FORMAT, 'kind': kind, 'found_for': _plain(found_for), 'notes': _plain(notes)}
    about['hash'] = digest(about['found_for'])
    known = [folder / name for name in (HEADER, DRAFT) if (folder / name).exists()]
    begun = _read_json(known[0]) if known else {**about, 'parts': []}
    for name in ('format', 'kind', 'found_for', 'notes'):
        if differs := difference(begun.get(name), about[name], name):
            raise ValueError(f'{folder} holds what another search found: {differs}; move it away.')
    if (folder / HEADER).exists():
        return
    for arrays in parts(sum(begun['parts'])):
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            number = len(begun['parts'])
            for name, array in arrays.items():
                _save(_file(folder, name, number), array)
            begun['parts'].append(len(next(iter(arrays.values()))))
            begun['arrays'] = {name: [str(a.dtype), list(a.shape[1:])] for name, a in arrays.items()}
            _write_json(folder / DRAFT, begun)
    if writes:
        _write_json(folder / HEADER, begun)
        (folder / DRAFT).unlink()


def load(folder: epath.PathLike, kind: str, wanted: Mapping[str, Any]) -> Artifact:
    """The artifact of a folder, if it is of this kind and was found for what is wanted.

    `wanted` may name less than the artifact was found for; what it names must be the same.
    """
    folder = epath.Path(folder).expanduser()
    if not (folder / HEADER).exists():
        state = (
            'holds an unfinished search; run it to its end' if (folder / DRAFT).exists() else 'does not exist'
        )
        raise ValueError(f'there is no artifact in {folder}: it {state} (--mode=search makes one).')
    header = _read_json(folder / HEADER)
    if header.get('format') != FORMAT:
        raise ValueError(f'{folder} has format {header.get("format")}, and this jaxgen reads {FORMAT}.')
    if header['kind'] != kind:
        raise ValueError(f"{folder} holds '{header['kind']}', and '{kind}' is wanted; give another folder.")
    if header['hash'] != digest(header['found_for']):
        raise ValueError(f'{folder / HEADER} was changed after the search; run --mode=search again.')
    for name, value in _plain(wanted).items():
        if differs := difference(header['found_for'].get(name), value, name):
            raise ValueError(f'{folder} was found for something else: {differs}; run --mode=search for this.')
    arrays = {
        name: Rows([_part(_file(folder, name, i), rows, like) for i, rows in enumerate(header['parts'])])
        for name, like in header['arrays'].items()
    }
    return Artifact(kind, header['found_for'], arrays, header['notes'])


def digest(found_for: Mapping[str, Any]) -> str:
    """The hash of what an artifact was found for."""
    return hashlib.sha256(json.dumps(_plain(found_for), sort_keys=True).encode()).hexdigest()


def difference(theirs: Any, ours: Any, where: str) -> str:
    """The first place where two tables differ, in words; '' where they are the same."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in sorted({*theirs, *ours}):
            if said := difference(theirs.get(key), ours.get(key), f'{where}.{key}'):
                return said
        return ''
    return '' if theirs == ours else f'{where} is {theirs!r} there and {ours!r} here'


def _shapes(tree: Any, where: str = '') -> dict[str, list[int]]:
    if isinstance(tree, Mapping):
        inner = (_shapes(value, f'{where}/{key}'.lstrip('/')) for key, value in tree.items())
        return {name: shape for shapes in inner for name, shape in shapes.items()}
    return {where: list(tree.shape)}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))  # tuples become lists, as they will be read back


def _file(folder: epath.Path, name: str, number: int) -> epath.Path:
    return folder / f'{name}-{number:05d}.npy'


def _save(file: epath.Path, array: np.ndarray) -> None:
    with file.open('wb') as stream:
        np.save(stream, array)


def _part(file: epath.Path, rows: int, like: Sequence[Any]) -> np.ndarray:
    """A part's rows; what is not whole is said by name."""
    try:
        local = '://' not in str(file)
        array = np.load(file, mmap_mode='r') if local else np.load(io.BytesIO(file.read_bytes()))
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f'{file} cannot be read ({error}); run --mode=search again.') from None
    if [str(array.dtype), list(array.shape)] != [like[0], [rows, *like[1]]]:
        raise ValueError(f'{file} holds {array.dtype}{list(array.shape)}, not what {HEADER} says.')
    return array


def _read_json(file: epath.Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f'{file} cannot be read ({error}); run --mode=search again.') from None
    return record if isinstance(record, dict) else {}


def _write_json(file: epath.Path, record: Mapping[str, Any]) -> None:
    unfinished = file.with_name(f'{file.name}.tmp')
    unfinished.write_text(json.dumps(record, indent=1))
    unfinished.replace(file)
