"""Leaving when asked to: SIGTERM, or ctrl-C, ends a run after the step in progress, saved.

One process listens itself; several must stop at the same step, which jax's preemption service agrees on.
"""

import logging
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

log = logging.getLogger('jaxgen')
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Leaving:
    """While it is entered, the first signal is remembered and the second ends the process at once.

    If a signal came, it leaves with the exit code that a shell gives it (143, 130), also after the last step:
    a scheduler then knows that the command is to be run again, and no other job of this one begins.
    """

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def asked(self, step: int) -> bool:
        """Whether to leave after this step; several processes ask together, at every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self._signal = signal.SIGTERM
        return self._signal is not None

    def __enter__(self) -> 'Leaving':
        # Python lets only the main thread listen; elsewhere, as in a notebook's, signals do what they did.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._heard) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        self._restore()
        if kind is None and self._signal is not None:
            raise SystemExit(128 + self._signal)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        self._restore()
        log.info('%s: leaving after this step; once more to leave at once.', self._signal.name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
