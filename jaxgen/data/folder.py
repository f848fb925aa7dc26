"""A folder of the user's own pictures: class subfolders, or captions in a metadata.jsonl beside them.

Subfolders 'train' and 'test' (or 'validation', 'val') are the splits where there are such; otherwise a
part of the files is held out by a hash of the name, so that adding files moves no other. Files that
are no pictures are named, counted and left out, up to a limit.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import struct
import threading
import zlib
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from jaxgen import images
from jaxgen.config import Part, Share, Side
from jaxgen.data.source import Description, Example, check_resolution, check_split, default_data_dir

log = logging.getLogger('jaxgen')
SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff')
METADATA = 'metadata.jsonl'
_SPLIT_FOLDERS = {'train': ('train',), 'test': ('test', 'validation', 'val')}
_NO_PICTURE = (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file: its name below the folder and what is known of it."""

    name: str
    label: int | None = None
    caption: str | None = None


class Folder:
    """Readable pictures of one split, cut to squares."""

    def __init__(
        self,
        root: epath.Path,
        entries: Sequence[Entry],
        description: Description,
        random_crop: bool,
        unreadable: Sequence[str],
        most_unreadable: int,
    ):
        self.root = root
        self.entries = entries
        self.description = description
        self.random_crop = random_crop
        self.unreadable = list(unreadable)
        self.most_unreadable = most_unreadable
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Example:
        return self._example(index, along=0.5)

    def augmented(self, index: int, rng: np.random.Generator) -> Example:
        """The example cut at a random place of its long side, where the folder was built with that."""
        return self._example(index, along=rng.random() if self.random_crop else 0.5)

    def _example(self, index: int, along: float) -> Example:
        # A file with a good header may still be cut off. The next good one stands in for it, always the
        # same, so that data stays a function of (seed, step).
        for offset in range(len(self.entries)):
            entry = self.entries[(index + offset) % len(self.entries)]
            data = (self.root / entry.name).read_bytes()
            try:
                image = images.fit(images.decode(data), self.description.resolution)
            except _NO_PICTURE as error:
                self._count(entry.name, error)
                continue
            example = {'image': images.crop(image, self.description.resolution, along)}
            if entry.label is not None:
                example['label'] = entry.label
            if entry.caption is not None:
                example['caption'] = entry.caption
            return example
        raise ValueError(f'no file of {str(self.root)!r} can be decoded')

    def _count(self, name: str, error: Exception) -> None:
        with self._lock:
            if name not in self.unreadable:
                log.warning('cannot decode %s (%s); the next file stands in for it', name, error)
                self.unreadable.append(name)
            _check_unreadable(self.root, self.unreadable, self.most_unreadable)


def _check_unreadable(root: epath.Path, names: Sequence[str], most: int) -> None:
    if len(names) > most:
        shown = ', '.join(names[:5]) + (' ...' if len(names) > 5 else '')
        raise ValueError(
            f'{len(names)} files of {str(root)!r} are no readable pictures ({shown}), and the limit is '
            f'{most}; mend or remove them, or raise unreadable_limit'
        )


def _pictures(folder: epath.Path, below: str = '') -> list[str]:
    """Names of the picture files below a folder, relative to it, sorted."""
    names = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith('.'):
            continue
        if path.suffix.lower() in SUFFIXES:
            names.append(below + path.name)
        elif path.is_dir():
            names += _pictures(path, f'{below}{path.name}/')
    return names


def _captioned(root: epath.Path) -> list[Entry]:
    entries = []
    for number, line in enumerate((root / METADATA).read_text(encoding='utf-8').split('\n'), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            caption = row['text'] if 'text' in row else row['caption']
            entries.append(Entry(str(row['file_name']), caption=str(caption)))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'line {number} of {str(root / METADATA)!r} is {line[:80]!r}; each line is a JSON object '
                "with 'file_name' and 'text' (or 'caption')"
            ) from error
    return sorted(entries, key=lambda entry: entry.name)


def _labelled(root: epath.Path, splits: Sequence[epath.Path]) -> tuple[list[Entry], tuple[str, ...] | None]:
    """Entries of a split; a class has the same number in every split, also where one lacks it."""
    names = _pictures(root)
    if any('/' not in name for name in names):
        return [Entry(name) for name in names], None  # pictures without classes, as a tokenizer needs them
    everywhere = [name for folder in splits for name in (names if folder == root else _pictures(folder))]
    classes = tuple(sorted({name.split('/')[0] for name in everywhere if '/' in name}))
    return [Entry(name, label=classes.index(name.split('/')[0])) for name in names], classes


def _split_root(path: epath.Path, split: str) -> tuple[epath.Path, bool]:
    """The folder that holds the split, and whether all of it is that split."""
    folders = {child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith('.')}
    known = {name for names in _SPLIT_FOLDERS.values() for name in names}
    if not folders or not folders <= known:
        return path, False
    for name in _SPLIT_FOLDERS[split]:
        if name in folders:
            return path / name, True
    raise ValueError(
        f'{str(path)!r} is divided into {sorted(folders)} and holds no {split!r}; add a folder '
        f'{_SPLIT_FOLDERS[split][0]!r}, or put the classes right below the path to hold a part out'
    )


def _has_good_header(path: epath.Path) -> bool:
    if not path.exists():
        return False
    with path.open('rb') as file:
        try:
            with Image.open(file) as image:
                image.verify()
        except _NO_PICTURE:
            return False
    return True


def _signature(root: epath.Path, names: Sequence[str]) -> str:
    """Changes when the files do. Sizes and times are asked for only where that costs no network call each."""
    digest = hashlib.sha256(str(root).encode())
    for name in names:
        digest.update(f'\n{name}'.encode())
        if '://' not in str(root) and (root / name).exists():
            stat = (root / name).stat()
            digest.update(f' {stat.length} {stat.mtime}'.encode())
    return digest.hexdigest()[:24]


def _unreadable(root: epath.Path, names: Sequence[str], data_dir: str) -> list[str]:
    """Names of the files that are no pictures by their header; looked up once for a state of the folder."""
    known = epath.Path(data_dir).expanduser() / 'folder' / f'{_signature(root, names)}.json'
    if known.exists():
        return json.loads(known.read_text())
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        good = pool.map(lambda name: _has_good_header(root / name), names)
        bar = tqdm(zip(names, good, strict=True), 'checking pictures', len(names), disable=len(names) < 1000)
        bad = [name for name, fine in bar if not fine]
    known.parent.mkdir(parents=True, exist_ok=True)
    unfinished = known.with_name(f'{known.name}.{threading.get_native_id()}.unfinished')
    unfinished.write_text(json.dumps(bad))
    unfinished.replace(known)
    return bad


def _held_out(names: Sequence[str], holdout: float) -> set[str]:
    """The names whose hash is low: that part of many files, at least one of several."""
    place = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], 'big') for name in names}
    low = {name for name in names if place[name] < holdout * 2**48}
    return low or (set(sorted(names, key=place.get)[:1]) if holdout and len(names) > 1 else set())


def build(
    path: str,
    split: str = 'train',
    resolution: Side = 256,
    captions: bool | None = None,
    crop: str = 'centre',
    holdout: Part = 0.05,
    unreadable_limit: Share = 0.01,
    data_dir: str | None = None,
) -> Folder:
    """The pictures below `path`, local or gs://, as squares of `resolution`.

    `captions` asks for a metadata.jsonl or forbids it; None takes it where there is one. `crop` is 'centre',
    or 'random' for training. `unreadable_limit` is the part of the files that may be no pictures, one always.
    """
    check_split(split)
    check_resolution(resolution)
    if crop not in ('centre', 'random'):
        raise ValueError(f"crop is {crop!r}; choose 'centre' or 'random'")
    if not 0 <= holdout < 1:
        raise ValueError(f'holdout is {holdout}; give a part of the files within [0, 1)')
    folder = epath.Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f'there is no folder {path!r}; give the folder that holds the pictures as data.path')
    root, whole = _split_root(folder, split)
    has_metadata = (root / METADATA).exists()
    if captions and not has_metadata:
        raise ValueError(
            f'captions are wanted and {str(root)!r} has no {METADATA}; write one with a line '
            '{"file_name": ..., "text": ...} for each picture'
        )
    said = has_metadata if captions is None else captions
    splits = [child for child in root.parent.iterdir() if child.is_dir()] if whole else [root]
    entries, classes = (_captioned(root), None) if said else _labelled(root, splits)
    bad = _unreadable(root, [entry.name for entry in entries], data_dir or default_data_dir())
    most = max(1, int(unreadable_limit * len(entries))) if unreadable_limit else 0
    _check_unreadable(root, bad, most)
    if bad:
        log.warning('%d files of %s are no pictures and left out: %s', len(bad), root, ', '.join(bad[:5]))
    left_out = set(bad)
    entries = [entry for entry in entries if entry.name not in left_out]
    if not whole:
        held_out = _held_out([entry.name for entry in entries], holdout)
        entries = [entry for entry in entries if (entry.name in held_out) == (split == 'test')]
    if not entries:
        raise ValueError(
            f'{str(root)!r} has no picture for {split!r} with holdout={holdout}; pictures end in '
            f'{", ".join(SUFFIXES)}'
        )
    description = Description(resolution, len(classes) if classes else None, said, classes)
    return Folder(root, entries, description, crop == 'random', bad, most)
