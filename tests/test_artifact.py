"""Artifacts: whole or not there, resumed exactly, and given only to whom they were found for."""

import hashlib
import json

import numpy as np
import pytest

from jaxgen import artifact

PARAMS = {'model': {'head': {'kernel': np.ones((2, 3))}, 'bias': np.zeros(3)}}
FOUND_FOR = {'latent': (4, 4, 3), 'classes': None}
ROWS = np.arange(40, dtype=np.float32).reshape(10, 4)


def fingerprint(tree):
    return hashlib.sha256(tree['bias'].tobytes()).hexdigest()


def in_parts(first, size=4, until=99):
    """The rows and their numbers from `first` on; stopped, as by a kill, before row `until`."""
    for start in range(first, len(ROWS), size):
        if start >= until:
            raise KeyboardInterrupt
        yield {'rows': ROWS[start : start + size], 'number': np.arange(start, min(start + size, len(ROWS)))}


def write(folder, parts=in_parts, found_for=None, notes=None, **others):
    artifact.write(folder, 'numbers', found_for or FOUND_FOR, parts, notes or {'count': 10}, **others)


def never(first):
    raise AssertionError('a complete search was run again')


def test_what_was_written_is_read_from_the_disk(tmp_path):
    write(tmp_path / 'found')
    found = artifact.load(tmp_path / 'found', 'numbers', {'latent': (4, 4, 3)})
    assert found.found_for == {'latent': [4, 4, 3], 'classes': None} and found.notes == {'count': 10}
    rows, number = found.arrays['rows'], found.arrays['number']
    assert rows.shape == (10, 4) and len(number) == 10 and rows.dtype == np.float32
    assert all(isinstance(part, np.memmap) for part in rows.parts)
    np.testing.assert_array_equal([rows[i] for i in range(10)], ROWS)
    assert [int(number[i]) for i in range(10)] == list(range(10))
    assert rows[0].flags.owndata and rows[0].flags.writeable
    for index in (-1, 10):
        with pytest.raises(IndexError):
            rows[index]


def test_stopped_search_goes_on_where_it_was(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / 'found', lambda first: in_parts(first, until=8))
    with pytest.raises(ValueError, match='unfinished search'):
        artifact.load(tmp_path / 'found', 'numbers', {})
    seen = []
    write(tmp_path / 'found', lambda first: seen.append(first) or in_parts(first))
    assert seen == [8]
    write(tmp_path / 'at_once')
    kept, whole = (artifact.load(tmp_path / name, 'numbers', {}).arrays for name in ('found', 'at_once'))
    for name in ('rows', 'number'):
        np.testing.assert_array_equal([*kept[name]], [*whole[name]])


def test_complete_search_is_left_alone_and_another_refused(tmp_path):
    write(tmp_path / 'found')
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / 'found').iterdir()}
    write(tmp_path / 'found', never)
    with pytest.raises(ValueError, match=r'found_for.classes is None there and 7 here; move it away'):
        write(tmp_path / 'found', never, found_for={**FOUND_FOR, 'classes': 7})
    with pytest.raises(ValueError, match='notes.count is 10 there and 20 here'):
        write(tmp_path / 'found', never, notes={'count': 20})
    assert before == {file.name: file.stat().st_mtime_ns for file in (tmp_path / 'found').iterdir()}


def test_process_that_does_not_write_only_searches(tmp_path):
    write(tmp_path / 'found', writes=False)
    assert not (tmp_path / 'found').exists()


def networks(params):
    return {'networks': artifact.networks(params, fingerprint)}


@pytest.mark.parametrize(
    'params, message',
    [
        ({'model': {**PARAMS['model'], 'bias': np.ones(3)}}, 'networks.model.fingerprint is'),
        (
            {'model': {**PARAMS['model'], 'head': {'kernel': np.ones((2, 5))}}},
            r'networks.model.shapes.head/kernel is \[2, 3\] there and \[2, 5\] here',
        ),
        ({**PARAMS, 'text': {'bias': np.zeros(1)}}, 'networks.text is None there'),
    ],
)
def test_other_networks_are_refused(tmp_path, params, message):
    write(tmp_path, found_for=networks(PARAMS))
    artifact.load(tmp_path, 'numbers', networks(PARAMS))
    with pytest.raises(ValueError, match=f'found for something else: {message}'):
        artifact.load(tmp_path, 'numbers', networks(params))


def changed_header(folder, **changes):
    path = folder / artifact.HEADER
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut_off(folder):
    file = folder / 'rows-00001.npy'
    file.write_bytes(file.read_bytes()[:-8])


@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda folder: (folder / artifact.HEADER).unlink(), 'there is no artifact'),
        (lambda folder: changed_header(folder, found_for={'classes': 7}), 'changed after the search'),
        (lambda folder: changed_header(folder, format=99), 'has format 99'),
        (lambda folder: (folder / artifact.HEADER).write_text('{'), 'artifact.json cannot be read'),
        (lambda folder: (folder / artifact.HEADER).write_text('[]'), 'has format None'),
        (lambda folder: changed_header(folder, kind='letters'), "holds 'letters', and 'numbers' is wanted"),
        (cut_off, 'rows-00001.npy cannot be read'),
        (lambda folder: (folder / 'number-00002.npy').unlink(), 'number-00002.npy cannot be read'),
        (lambda folder: np.save(folder / 'rows-00000.npy', ROWS[:3]), 'rows-00000.npy holds'),
    ],
)
def test_what_is_not_whole_is_refused(tmp_path, damage, message):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        artifact.load(tmp_path, 'numbers', {})
