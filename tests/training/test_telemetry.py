"""The run's record: exact lines, cut back on resume, quiet consoles, whole JSON files."""

import contextlib
import io
import json
import resource

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxgen.training import board, telemetry


def read_lines(path):
    return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def read_events(path):
    """The events of TensorBoard files: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    events = []
    for file in sorted((path / 'tensorboard').iterdir()):
        data, start = file.read_bytes(), 0
        while start < len(data):
            length = int.from_bytes(data[start : start + 8], 'little')
            events.append(Event.FromString(data[start + 12 : start + 12 + length]))
            start += 16 + length
    return events


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_and_board_hold_what_was_said(tmp_path):
    console = io.StringIO()
    with telemetry.Telemetry(tmp_path, 100, console=console) as run:
        run.scalars(1, {'loss': jnp.asarray(0.5), 'images_per_second': 12})
        run.scalars(2, {'loss': float('nan')})
        run.images(2, 'samples', np.zeros((4, 6, 3), np.uint8))
        with pytest.raises(ValueError, match=r"'samples' is float32\[4, 6, 3\]"):
            run.images(2, 'samples', np.zeros((4, 6, 3), np.float32))
    first, second = read_lines(tmp_path)
    assert (
        first['step'] == 1 and first['loss'] == 0.5 and first['images_per_second'] == 12 and first['time'] > 0
    )
    assert second['loss'] is None
    values = [(event.step, value) for event in read_events(tmp_path) for value in event.summary.value]
    assert [(step, value.tag) for step, value in values] == [
        (1, 'loss'),
        (1, 'images_per_second'),
        (2, 'loss'),
        (2, 'samples'),
    ]
    assert values[0][1].simple_value == 0.5 and values[3][1].image.width == 6


def test_a_resume_cuts_the_lines_back(tmp_path):
    with telemetry.Telemetry(tmp_path, 10, console=io.StringIO()) as run:
        for step in range(1, 7):
            run.scalars(step, {'loss': step})
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 3, "lo')
    with telemetry.Telemetry(tmp_path, 10, resume_step=4, console=io.StringIO()) as run:
        assert [line['step'] for line in read_lines(tmp_path)] == [1, 2, 3, 4]
        run.scalars(5, {'loss': 50})
    assert [line['loss'] for line in read_lines(tmp_path)] == [1, 2, 3, 4, 50]
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith('.tmp')] == []


@contextlib.contextmanager
def full_disk(room):
    """No file may grow past some bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_no_run_and_costs_no_line(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(telemetry, 'SECONDS_BETWEEN_UPLOADS', 0)
    monkeypatch.setattr(board, 'SECONDS_BETWEEN_FLUSHES', 0)
    monkeypatch.setattr(telemetry.log, 'propagate', True)
    with telemetry.Telemetry(tmp_path, 100, console=io.StringIO()) as run:
        for step in range(1, 4):
            run.scalars(step, {'loss': step})
        with full_disk((tmp_path / 'metrics.jsonl').stat().st_size + 7):
            for step in range(4, 40):
                run.scalars(step, {'loss': step})
            assert not (tmp_path / 'metrics.jsonl').read_text().endswith('\n')
        run.scalars(40, {'loss': 40})
        assert [line['loss'] for line in read_lines(tmp_path)] == list(range(1, 41))
        assert telemetry.read_lines(tmp_path, 3) == read_lines(tmp_path)[:3]
    assert 'its lines wait for room' in caplog.text and 'goes on without it' in caplog.text
    assert len([record for record in caplog.records if record.name == 'jaxgen']) == 2


def test_a_pipe_gets_few_lines_and_a_terminal_a_bar(tmp_path):
    pipe, terminal = io.StringIO(), Terminal()
    for name, console in (('pipe', pipe), ('terminal', terminal)):
        with telemetry.Telemetry(tmp_path / name, 50, resume_step=10, console=console) as run:
            for step in range(11, 51):
                run.scalars(step, {'loss': 1 / step, 'images_per_second': 100})
    lines = pipe.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0] == 'step 11/50, loss 0.09091, images/second 100' and lines[1].endswith(' left')
    assert lines[1].startswith('step 50/50, loss 0.02') and lines[1].endswith('00:00 left')
    assert '50/50' in terminal.getvalue() and 'loss=0.02' in terminal.getvalue()


def test_another_process_writes_nothing(tmp_path):
    with telemetry.Telemetry(tmp_path / 'run', 10, enabled=False) as run:
        run.scalars(1, {'loss': 1.0})
        run.images(1, 'samples', np.zeros((4, 6, 3), np.uint8))
    assert not (tmp_path / 'run').exists()


def test_json_files_are_replaced_whole(tmp_path):
    path = tmp_path / 'result.json'
    telemetry.write_json(path, {'fid': 12.5})
    with pytest.raises(TypeError):
        telemetry.write_json(path, {'fid': object()})
    assert json.loads(path.read_text()) == {'fid': 12.5}
    assert [item.name for item in tmp_path.iterdir()] == ['result.json']
