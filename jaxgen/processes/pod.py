"""The processes of a run on the line: the first one answers, the others call it and stay connected.

That each is there and has the same facts is known before jax connects them, which hangs where one is missing.
Whoever fails says so on the line, and whoever dies is missed there; all others then end at once with one line
that names it, whatever they wait for. jax by itself would wait 100 s, and not say for whom.
"""

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from jaxgen.processes.facts import differences, name_of
from jaxgen.processes.line import Line, Lost, Message
from jaxgen.processes.place import Place

log = logging.getLogger('jaxgen')
AGAIN = 0.2  # seconds between two calls of one who does not answer yet
REMINDER = 60.0
NEWS = 3.0  # seconds in which a process that died is missed by all


class Refused(ValueError):
    """The processes do not fit together; each of them raises it."""


class Pod:
    """This process's lines: to all others if it is the first, else to the first alone."""

    def __init__(self, place: Place, seconds: float):
        """Connects, in `seconds` at the most; who is missing by then is named by the first `agree`."""
        self.place, self.first = place, place.process == 0
        self._seconds, self._missing, self._early = seconds, '', True
        self.hosts = {place.process: socket.gethostname()}
        self._lines: dict[int, Line] = {}
        self._inbox: dict[int, queue.SimpleQueue[Message]] = {}
        self._done: set[int] = set()
        self._changed, self._ending = threading.Condition(), threading.Lock()
        self._steps, self._stepped = 0, threading.Condition()
        self._asked = self._last = None  # by which signal, and after how many steps all leave
        self._reached: dict[int, int] = {}
        if self.first:
            self._answer()
        else:
            self._call()

    def agree(self, what: str, facts: Mapping[str, str], remedy: str) -> None:
        """Refused, in every process, where one has other facts. All of them call this."""
        mine = {'at': what, **facts}
        if not self.first:
            self._lines[0].send({'is': 'facts', 'facts': mine})
            if said := self._inbox[0].get()['problem']:
                raise Refused(said)
            return
        told = {0: mine} | {process: self._await(process, what)['facts'] for process in sorted(self._lines)}
        found = differences(told, self.hosts)
        problem = '; '.join(filter(None, (self._missing, f'{found}. {remedy}' if found else '')))
        self._early = False
        if problem:
            self._done.update(self._lines)
        self._broadcast({'is': 'verdict', 'problem': problem})
        if problem:
            raise Refused(problem)

    def told(self, value: Any) -> Any:
        """What the first process gives, in all of them; it is plain data."""
        if not self.first:
            return self._inbox[0].get()['value']
        self._broadcast({'is': 'told', 'value': value})
        return value

    def leaves(self, pressed: int | None) -> int | None:
        """The signal by which all leave after this step, if they do; all ask after every step.

        pressed: the signal that this process got. Whoever has got one tells the first, which asks all how far
        they are; they wait then for what it says: one step more than the farthest has done. jax's service for
        this counts in the steps that it was last asked about, and orbax asks it about older ones.
        """
        with self._stepped:
            self._steps += 1
            if pressed and self._asked is None:
                self._wish(pressed)
            while self._asked is not None and self._last is None:
                self._stepped.wait()
            return self._asked if self._steps == self._last else None

    def _wish(self, number: int) -> None:
        """Under the lock: this process, or another one that tells the first, wants to leave."""
        if not self.first:
            self._lines[0].send({'is': 'wish', 'signal': number})
        elif self._asked is None:
            self._asked = number
            self._broadcast({'is': 'when', 'signal': number})
            self._arrived(0, self._steps)

    def _arrived(self, process: int, steps: int) -> None:
        """Under the lock, in the first: how far a process is."""
        self._reached[process] = steps
        if len(self._reached) == self.place.processes:
            self._last = max(self._reached.values()) + 1
            self._broadcast({'is': 'until', 'steps': self._last})
            self._stepped.notify_all()

    def _agree_to_leave(self, process: int, message: Message) -> None:
        with self._stepped:
            if message['is'] == 'wish':
                self._wish(message['signal'])
            elif message['is'] == 'at':
                self._arrived(process, message['steps'])
            elif message['is'] == 'when':
                self._asked = message['signal']
                self._lines[0].send({'is': 'at', 'steps': self._steps})
            else:
                self._last = message['steps']
                self._stepped.notify_all()

    def failing(self, said: str, code: int) -> None:
        """Tell the others that this process fails, unless it fails because another one did."""
        time.sleep(NEWS)  # then `_end` comes before
        self._ending.acquire()  # and from here on it comes no more
        name = name_of(self.place.process, self.hosts)
        self._broadcast({'is': 'failed', 'name': name, 'said': said, 'code': code})

    def leave(self) -> None:
        """This process has done its part: that it ends is no failure."""
        self._broadcast({'is': 'done'})

    def _answer(self) -> None:
        place = self.place
        try:
            server = _listen(place.next_port)
        except OSError as error:
            raise ValueError(
                f'port {place.next_port} cannot be listened at ({error.strerror}); end what listens there, '
                'or give the coordinator another port.'
            ) from error
        deadline = time.monotonic() + self._seconds
        threading.Thread(target=self._accept, args=(server,), daemon=True).start()
        with self._changed:
            while len(self._lines) < place.processes - 1 and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            missing = [number for number in range(1, place.processes) if number not in self._lines]
            if missing and not self._missing:
                self._missing = (
                    f'{_several(missing)} of {place.processes} did not come within {self._seconds:.0f} s to '
                    f'{self.hosts[0]}:{place.next_port}; start what is missing, or look at its log'
                )

    def _accept(self, server: socket.socket) -> None:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=self._greet, args=(Line(connection),), daemon=True).start()

    def _greet(self, line: Line) -> None:
        try:
            hello = line.receive()
            process, host = int(hello['process']), str(hello['host'])
        except (Lost, KeyError, TypeError, ValueError):
            line.close()  # it is none of ours
            return
        problem = ''
        with self._changed:
            if not 0 < process < self.place.processes:
                problem = f'{host} says that it is process {process} of {self.place.processes}'
            elif process in self._lines:
                problem = f'{self.hosts[process]} and {host} both say that they are process {process}'
            else:
                self.hosts[process], self._lines[process] = host, line
                self._inbox[process] = queue.SimpleQueue()
            if problem and self._early:
                self._missing = problem
            self._changed.notify()
        if problem:
            line.send({'is': 'verdict', 'problem': problem})
        else:
            self._listen_to(process)

    def _call(self) -> None:
        place, deadline = self.place, time.monotonic() + self._seconds
        while True:
            try:
                connection = socket.create_connection((place.host, place.next_port), timeout=5)
                if connection.getsockname() == connection.getpeername():
                    raise ConnectionRefusedError('it was answered by itself')  # TCP allows that
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Refused(
                        f'process 0 of {place.processes} does not answer at {place.host}:{place.next_port} '
                        f'within {self._seconds:.0f} s ({error}); start it, or look at its log.'
                    ) from error
                time.sleep(AGAIN)
        line = Line(connection)
        line.send({'is': 'hello', 'process': place.process, 'host': self.hosts[place.process]})
        self.hosts[0], self._lines[0], self._inbox[0] = place.host, line, queue.SimpleQueue()
        threading.Thread(target=self._listen_to, args=(0,), daemon=True).start()

    def _listen_to(self, process: int) -> None:
        """Sort what a line brings; what fails there ends this process."""
        line = self._lines[process]
        while True:
            try:
                message = line.receive()
            except Lost as lost:
                if process in self._done:
                    return
                name = name_of(process, self.hosts)
                message = {'is': 'failed', 'name': name, 'said': str(lost), 'code': 1}
            if message['is'] == 'failed':
                self._end(message)
            elif message['is'] == 'done':
                self._done.add(process)
            elif message['is'] in ('wish', 'when', 'at', 'until'):
                self._agree_to_leave(process, message)
            else:
                if message.get('problem'):
                    self._done.add(process)  # it refuses as this one does
                self._inbox[process].put(message)

    def _await(self, process: int, what: str) -> Message:
        while True:
            try:
                return self._inbox[process].get(timeout=REMINDER)
            except queue.Empty:
                log.info('Waiting for %s: %s.', name_of(process, self.hosts), what)

    def _broadcast(self, message: Message) -> None:
        for line in list(self._lines.values()):
            line.send(message)

    def _end(self, failure: Message) -> NoReturn:
        """End this process, whatever its threads are stuck in, with one line that says by whose fault."""
        self._ending.acquire()  # waits for ever where this process fails by itself, and ends
        self._broadcast(failure)
        said = f'jaxgen: {failure["name"]} {failure["said"]}\n'
        os.write(2, said.encode())
        os._exit(failure['code'])


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(('', port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    return socket.create_server(('', port), backlog=1024)


def _several(numbers: list[int]) -> str:
    names = ', '.join(map(str, numbers[:16])) + (' ...' if len(numbers) > 16 else '')
    return f'process{"es" if len(numbers) > 1 else ""} {names}'
