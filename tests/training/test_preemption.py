"""Asked to leave: once to save and go, twice to go at once."""

import os
import signal
import threading

import pytest

from jaxgen.training.preemption import Leaving


def test_the_first_signal_is_remembered_and_tells_the_exit_code():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, Leaving() as leaving:
        assert not leaving.asked(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert leaving.asked(2) and leaving.asked(3)
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_is_for_whoever_listened_before():
    with pytest.raises(KeyboardInterrupt), Leaving() as leaving:
        os.kill(os.getpid(), signal.SIGINT)
        assert leaving.asked(1)
        os.kill(os.getpid(), signal.SIGINT)


def test_an_error_is_not_hidden_by_a_signal():
    with pytest.raises(ValueError, match='broken'), Leaving():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError('broken')


def test_without_a_signal_nothing_happens_and_other_threads_may_train():
    before = signal.getsignal(signal.SIGTERM)
    asked = []

    def train():
        with Leaving() as leaving:
            asked.append(leaving.asked(1))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert asked == [False] and signal.getsignal(signal.SIGTERM) is before
