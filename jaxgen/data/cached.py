"""What the frozen networks make of a data set, computed once by `--mode=cache` and read at random.

A folder of shards (array_record), a record an example: the tokenizer's arrays, of the picture and where asked
for of its mirror image, the features of its caption, and what the source said of it. `manifest.json`, written
last, says what all of it was made of and by. Records are read as they lie: what is to be done to numbers is
done on the device.
"""

import dataclasses
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from jaxgen import artifact
from jaxgen.data.source import Description, Example
from jaxgen.weights import safetensors

MANIFEST, DRAFT, NULL = 'manifest.json', 'unfinished.json', 'null.safetensors'
FORMAT = 1
# Where the data lie says nothing of what they are.
PLACES = ('path', 'data_dir', 'unreadable_limit')
_HEADER = struct.Struct('<5i12x')  # label, height, width, bytes of the caption, tokens of its features
_NO_LABEL = -1


def dtype(name: str) -> np.dtype:
    """NumPy's dtype of a name, bfloat16 too."""
    return np.dtype(getattr(ml_dtypes, name, name))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where things lie in a record: `arrays` (name, dtype, shape), each `variants` times, and text features.

    Variant 0 is the picture, 1 its mirror image. `text` is the features' (dtype, width), None without.
    """

    arrays: tuple[tuple[str, str, tuple[int, ...]], ...]
    variants: int
    text: tuple[str, int] | None

    def bytes_of(self, tokens: int) -> int:
        """The length of a record with so many tokens, but for its caption."""
        held = sum(math.prod(shape) * dtype(kind).itemsize for _, kind, shape in self.arrays)
        text = tokens * self.text[1] * dtype(self.text[0]).itemsize if self.text else 0
        return _HEADER.size + self.variants * held + text

    def record(self) -> dict[str, Any]:
        """The layout as a manifest tells it."""
        return dataclasses.asdict(self)

    def pack(self, example: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
        """The record of an example; `arrays` are [variants, ...] by name, and 'text' [tokens, width]."""
        caption = example.get('caption')
        said = b'' if caption is None else caption.encode('utf-8', 'replace')
        text = arrays['text'] if self.text else np.zeros((0, 0))
        header = _HEADER.pack(example.get('label', _NO_LABEL), *example['size'], len(said), len(text))
        parts = [arrays[name] for name, _, _ in self.arrays]
        return b''.join([header, *(np.ascontiguousarray(part).tobytes() for part in (*parts, text)), said])

    def reader(self, captions: bool, more: Mapping[str, np.ndarray]) -> Any:
        """`read(record, variant) -> example`, views of the record; `more` is in every example."""
        places, start = [], _HEADER.size
        for name, kind, shape in self.arrays:
            count = math.prod(shape)
            places.append((name, dtype(kind), count, start, count * dtype(kind).itemsize, shape))
            start += self.variants * count * dtype(kind).itemsize
        kind, width = (dtype(self.text[0]), self.text[1]) if self.text else (None, 0)

        def read(record: bytes, variant: int) -> Example:
            label, height, columns, said, tokens = _HEADER.unpack_from(record)
            example = {'size': (height, columns), **more}
            for name, like, count, first, size, shape in places:
                example[name] = np.frombuffer(record, like, count, first + variant * size).reshape(shape)
            if label != _NO_LABEL:
                example['label'] = label
            if kind is not None:
                example['text'] = np.frombuffer(record, kind, tokens * width, start).reshape(tokens, width)
            if captions:
                example['caption'] = record[len(record) - said :].decode()
            return example

        return read


class Cached:
    """A split of a cache as a source; an example is what its picture and caption became."""

    def __init__(
        self, shards: Sequence[str], description: Description, layout: Layout, more: Mapping[str, Any]
    ):
        self.records = ArrayRecordDataSource(list(shards), {'max_parallelism': '0'})
        self.description = description
        self.variants = layout.variants
        self._read = layout.reader(description.captions, more)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        return self._read(self.records[index], 0)

    def mirrored(self, index: int) -> Example:
        """The example of the picture's mirror image."""
        if self.variants < 2:
            raise ValueError(
                'this cache keeps no mirror images; set train.flip=False, or make one with train.flip=True.'
            )
        return self._read(self.records[index], 1)


def build(folder: str, split: str, sections: Mapping[str, Any]) -> Cached:
    """The split of the cache in `folder`, 'train' or 'held_out', if it was made of these sections' data."""
    path = epath.Path(folder).expanduser()
    manifest = read_manifest(path)
    if differs := artifact.difference(about(manifest['sections']), about(sections), 'the data'):
        raise ValueError(f'{path} is a cache of other data: {differs}; make one with --mode=cache.')
    found = manifest['splits'].get(split, manifest['splits']['train'])  # as data without held_out are
    shards = [path / name for name, _, _ in found['shards']]
    for shard, (_, _, size) in zip(shards, found['shards']):
        if not shard.exists() or shard.stat().length != size:
            raise ValueError(
                f'{shard} is missing or cut off; the command that made the cache makes it again.'
            )
    layout = layout_of(found['layout'])
    name, _, shape = layout.arrays[0]
    said = found['description']
    description = Description(
        said['resolution'],
        said['classes'],
        said['captions'],
        said['label_names'] and tuple(said['label_names']),
        tuple(name for name, _, _ in layout.arrays),
        tuple(said['latent']),
        manifest['encoding'],
    )
    more = {'null': np.array(safetensors.read(os.fspath(path / NULL))['null'])} if layout.text else {}
    return Cached([os.fspath(shard) for shard in shards], description, layout, more)


def layout_of(record: Mapping[str, Any]) -> Layout:
    """The layout that a manifest tells of."""
    arrays = tuple((name, kind, tuple(shape)) for name, kind, shape in record['arrays'])
    return Layout(arrays, record['variants'], record['text'] and tuple(record['text']))


def about(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The sections data and held_out, but for where the data lie."""
    kept = {name: {k: v for k, v in one.items() if k not in PLACES} for name, one in sections.items()}
    return json.loads(json.dumps(kept))


def read_manifest(path: epath.Path) -> dict[str, Any]:
    """The manifest of a whole cache."""
    if not (path / MANIFEST).exists():
        state = (
            'is unfinished; the command that began it goes on'
            if (path / DRAFT).exists()
            else 'does not exist'
        )
        raise ValueError(f'the cache {path} {state} (--mode=cache makes one).')
    manifest = read_json(path / MANIFEST)
    if manifest.get('format') != FORMAT:
        raise ValueError(f'{path} has format {manifest.get("format")}, and this jaxgen reads {FORMAT}.')
    return manifest


def read_json(file: epath.Path) -> dict[str, Any]:
    """A file of our own, or what to do about it."""
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f'{file} cannot be read ({error}); move it away and run --mode=cache again.'
        ) from None
