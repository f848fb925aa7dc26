"""Leaving when asked to: SIGTERM, or ctrl-C, ends a run after the step in progress, saved.

Each process listens; several leave together after the same step, whichever of them were asked.
"""

import logging
import signal
import threading
from types import FrameType

import jax

from jaxgen.processes import current

log = logging.getLogger('jaxgen')
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Leaving:
    """While it is entered, the first signal is remembered and the second ends the process at once.

    If a signal came, it leaves with the exit code that a shell gives it (143, 130), one process also after
    the last step: a scheduler then knows that the command is to be run again, and no other job begins.
    """

    def __init__(self) -> None:
        self._pressed: signal.Signals | None = None
        self._agreed: int | None = None
        self._before: dict[signal.Signals, object] = {}

    def asked(self) -> bool:
        """Whether to leave after this step; several processes ask after every one."""
        self._agreed = current.leaves(self._pressed)
        return self._agreed is not None

    def __enter__(self) -> 'Leaving':
        # Python lets only the main thread listen; elsewhere, as in a notebook's, signals do what they did.
        heard = threading.current_thread() is threading.main_thread()
        if heard and (jax.process_count() == 1 or current.several()):
            self._before = {number: signal.signal(number, self._heard) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        self._restore()
        code = self._agreed if current.several() else self._pressed
        if kind is None and code is not None:
            raise SystemExit(128 + code)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self._pressed = signal.Signals(number)
        self._restore()
        log.info('%s: leaving after this step; once more to leave at once.', self._pressed.name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
