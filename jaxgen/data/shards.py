"""Files of records that are whole or not there, so that whoever writes many may be stopped at any time.

A shard is written under another name and gets its own when it is closed; a note beside it says how long it
is, and sums of what is in it. Which examples a shard has follows from its number.
"""

import dataclasses
import json
import os
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

SUFFIX, NOTE, UNFINISHED = '.array_record', '.json', '.unfinished'
OPTIONS = 'group_size:1,uncompressed'  # numbers without a pattern, each read by itself


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file, and the examples that it holds."""

    path: epath.Path
    rows: range

    @property
    def note(self) -> dict[str, Any] | None:
        """What is said of a shard that is whole; None of one that is not."""
        note = self.path.with_suffix(NOTE)
        if not (self.path.exists() and note.exists()):
            return None
        said = json.loads(note.read_text())
        whole = said['examples'] == len(self.rows) and said['bytes'] == self.path.stat().length
        return said if whole else None


def shards(folder: epath.Path, split: str, examples: int, size: int) -> list[Shard]:
    """All shards of a split, `size` examples in each but the last."""
    count = -(-examples // size)
    return [
        Shard(
            folder / f'{split}-{number:05d}-of-{count:05d}{SUFFIX}',
            range(number * size, min((number + 1) * size, examples)),
        )
        for number in range(count)
    ]


def summary(found: list[Shard]) -> dict[str, Any]:
    """The files of a split, and the mean and deviation of each channel of what training sees of it."""
    notes = {shard: shard.note for shard in found}
    absent = [shard.path.name for shard, note in notes.items() if note is None]
    if absent:
        raise ValueError(
            f'{absent[0]} and {len(absent) - 1} other shards are not there after all were written; the '
            'processes need a --workdir on a disk that each of them sees.'
        )
    sums, squares, values = (sum(np.asarray(note[name]) for note in notes.values()) for name in SUMS)
    mean = sums / values
    return {
        'examples': sum(note['examples'] for note in notes.values()),
        'shards': [[shard.path.name, note['examples'], note['bytes']] for shard, note in notes.items()],
        'mean': mean.tolist(),
        'deviation': np.sqrt(np.maximum(squares / values - mean**2, 0)).tolist(),
    }


SUMS = ('sums', 'squares', 'values')


class Writer:
    """Takes the records of shards one after the other, in their order."""

    def __init__(self, wanted: list[Shard]):
        self._wanted = iter(wanted)
        self._shard: Shard | None = None

    def write(self, record: bytes, sums: np.ndarray, squares: np.ndarray, values: int) -> None:
        """Add a record, with what it adds to the sums of its shard."""
        if self._shard is None:
            self._open()
        self._file.write(record)
        self._written += 1
        self._sums = [total + more for total, more in zip(self._sums, (sums, squares, values))]
        if self._written == len(self._shard.rows):
            self._close()

    def _open(self) -> None:
        self._shard = next(self._wanted)
        self._unfinished = f'{os.fspath(self._shard.path)}{UNFINISHED}'
        # Not over what was left: a writer that was interrupted may still come to close its file.
        epath.Path(self._unfinished).unlink(missing_ok=True)
        self._file = ArrayRecordWriter(self._unfinished, OPTIONS)
        self._written, self._sums = 0, [0.0, 0.0, 0]

    def _close(self) -> None:
        self._file.close()
        descriptor = os.open(self._unfinished, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        sums = {name: np.asarray(total).tolist() for name, total in zip(SUMS, self._sums)}
        note = {'examples': self._written, 'bytes': os.path.getsize(self._unfinished), **sums}
        self._shard.path.with_suffix(NOTE).write_text(json.dumps(note))
        os.replace(self._unfinished, self._shard.path)
        self._shard = None
