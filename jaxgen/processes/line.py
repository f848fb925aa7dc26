"""A line between two processes: a TCP connection that carries one JSON object a line, and beats in between.

A process that dies closes its lines, which the other end sees at once; a machine that dies is silent, which
is seen by the beats that do not come.
"""

import contextlib
import json
import socket
import threading
import time
from typing import Any

BEAT, SILENCE = 5.0, 40.0  # seconds
MOST = 2**24  # bytes of one message

Message = dict[str, Any]


class Lost(OSError):
    """The other end of a line is gone."""


class Line:
    """One end. Any thread may send; one receives."""

    def __init__(self, connection: socket.socket, silence: float = SILENCE):
        connection.settimeout(1.0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection, self._lock = connection, threading.Lock()
        self._received, self._silence = b'', silence
        self._heard = self._beaten = time.monotonic()

    def send(self, message: Message) -> None:
        """Sends it; that nobody is there any more is for `receive` to find out."""
        self._put(json.dumps(message).encode() + b'\n')

    def receive(self) -> Message:
        """Waits for the next message, and beats meanwhile; Lost if there will be none."""
        while True:
            while b'\n' not in self._received:
                self._read()
            line, _, self._received = self._received.partition(b'\n')
            if line:
                return _parsed(line)

    def close(self) -> None:
        """Hangs up."""
        self._connection.close()

    def _read(self) -> None:
        now = time.monotonic()
        if now - self._beaten > BEAT:
            self._beaten = now
            self._put(b'\n')
        try:
            data = self._connection.recv(2**16)
        except TimeoutError:
            if time.monotonic() - self._heard > self._silence:
                raise Lost(f'has not been heard of for {self._silence:.0f} s') from None
            return
        except OSError:
            data = b''
        if not data or len(self._received) > MOST:
            raise Lost('has ended without a word: killed, out of memory, or its machine went down')
        self._heard = time.monotonic()
        self._received += data

    def _put(self, data: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(data)


def _parsed(line: bytes) -> Message:
    """Not all that connects to a port speaks our language."""
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise Lost('does not speak as jaxgen does')
    return message
