"""Asked to leave: once to save and go, twice to go at once."""

import os
import signal
import threading

import pytest
from nouns import tiny

from jaxgen.jobs import train
from jaxgen.training.preemption import Leaving


def test_the_first_signal_is_remembered_and_tells_the_exit_code():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, Leaving() as leaving:
        assert not leaving.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert leaving.asked() and leaving.asked()
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_is_for_whoever_listened_before():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt), Leaving() as leaving:
            os.kill(os.getpid(), signal.SIGINT)
            assert leaving.asked()
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_is_not_hidden_by_a_signal():
    with pytest.raises(ValueError, match='broken'), Leaving():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError('broken')


def test_without_a_signal_nothing_happens_and_other_threads_may_train():
    before = signal.getsignal(signal.SIGTERM)
    asked = []

    def train():
        with Leaving() as leaving:
            asked.append(leaving.asked())

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert asked == [False] and signal.getsignal(signal.SIGTERM) is before


def test_a_signal_in_the_last_step_leaves_the_whole_record(tmp_path, monkeypatch):
    made = tiny.build(
        model={'name': 'dit', 'patch': 4, 'hidden': 16, 'heads': 2, 'depth': 1},
        path={'name': 'linear'},
        prediction={'output': 'velocity', 'time': 'thousand'},
        held_out={'split': 'test'},
        train={'steps': 2, 'held_out_every': 2, 'held_out_batches': 1},
    )
    asked, steps = Leaving.asked, []

    def signalled(self):
        steps.append(None)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return asked(self)

    monkeypatch.setattr(Leaving, 'asked', signalled)
    with pytest.raises(SystemExit) as left:
        train.run(made, tmp_path)
    assert left.value.code == 143
    assert 'held_out/loss' in train.run(made, tmp_path)['metrics']
