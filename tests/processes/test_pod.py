"""Lines between processes, here of threads: what they agree on, who is missing, who differs."""

import concurrent.futures
import socket
import threading
import time

import pytest

from jaxgen.processes import facts, line, pod
from jaxgen.processes.place import Place


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(('', 0))
        return free.getsockname()[1] - 1


def meet(port, processes, numbers, seconds, then):
    """What `then(pod)` returns or raises in each process."""

    joined = []

    def one(number):
        try:
            own = pod.Pod(Place('localhost', port, processes, number), seconds)
            joined.append(own)
            return then(own)
        except pod.Refused as error:
            return error

    with concurrent.futures.ThreadPoolExecutor() as threads:
        found = list(threads.map(one, numbers))
    for one in joined:  # they would end this process, each as if it were its own
        one._done.update(one._lines)
    return found


def test_the_same_is_agreed_on_and_the_first_tells(port):
    def then(joined):
        joined.agree('here', {'a': 'same'}, '')
        return joined.told(joined.place.process + 7), joined.told([1, None])

    assert meet(port, 3, range(3), 20, then) == [(7, [1, None])] * 3


@pytest.mark.parametrize('who', [(0,), (2,), (0, 1, 2)])
def test_all_leave_after_the_same_step(port, who):
    """Each at its own pace, and none farther than one step ahead of what all others have begun."""
    barrier = threading.Barrier(3)

    def then(joined):
        joined.agree('here', {}, '')
        for step in range(1, 100):
            barrier.wait(20)
            time.sleep(0.002 * joined.place.process)
            number = joined.leaves(15 if joined.place.process in who and step >= 5 else None)
            if number:
                return step, number
        return None

    said = meet(port, 3, range(3), 20, then)
    assert said[0][1] == 15 and said[0][0] >= 5 and len(set(said)) == 1, said


def test_who_is_asked_in_the_first_step_leaves_after_a_later_one(port):
    def then(joined):
        joined.agree('here', {}, '')
        told = (joined.leaves(2) for _ in range(100_000))
        return next(step for step, number in enumerate(told, 1) if number == 2)

    first, second = meet(port, 2, range(2), 20, then)
    assert first == second > 1


def test_what_differs_is_refused_by_all(port):
    def then(joined):
        number = joined.place.process
        joined.agree('here', {'a': 'same', 'b': str(number == 1), 'c': f'{number}' * 200}, 'Mend it.')

    said = meet(port, 3, range(3), 20, then)
    assert len({str(one) for one in said}) == 1 and isinstance(said[0], pod.Refused)
    assert f'b is True on process 1 ({socket.gethostname()}), False on the others; c is ' in str(said[0])
    assert str(said[0]).endswith('. Mend it.') and len(str(said[0])) < 600


def test_two_that_say_the_same_number_are_refused(port):
    said = meet(port, 3, (0, 1, 1), 1.0, lambda joined: joined.agree('here', {}, ''))
    assert all('both say that they are process 1' in str(one) for one in said)


def test_a_process_beyond_the_number_is_refused(port):
    said = meet(port, 2, (0, 1), 1.0, lambda joined: joined.agree('here', {}, ''))
    assert said == [None, None]
    other = concurrent.futures.ThreadPoolExecutor()
    late = other.submit(lambda: pod.Pod(Place('localhost', port, 6, 5), 1.0).agree('here', {}, ''))
    with pytest.raises(pod.Refused, match='says that it is process 5 of 2'):
        late.result(20)


def test_strangers_are_hung_up_on(port):
    def then(joined):
        if joined.first:
            with socket.create_connection(('localhost', port + 1)) as stranger:
                stranger.sendall(b'GET / HTTP/1.1\r\n\r\n')
                assert stranger.recv(1) == b''
        joined.agree('here', {}, '')

    assert meet(port, 2, range(2), 20, then) == [None, None]


def test_silence_and_the_end_of_a_line_are_noticed():
    one, other = _pair()
    ours, began = line.Line(one, silence=1.5), time.monotonic()
    with pytest.raises(line.Lost, match='has not been heard of'):
        ours.receive()
    assert 1.0 < time.monotonic() - began < 20
    theirs = line.Line(other)
    theirs.send({'a': 1})
    theirs.send({'a': 2})
    theirs.close()
    assert [ours.receive(), ours.receive()] == [{'a': 1}, {'a': 2}]
    with pytest.raises(line.Lost, match='ended without a word'):
        ours.receive()


def _pair():
    with socket.create_server(('localhost', 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


def test_differences_name_the_few_and_the_rest():
    hosts = {number: f'host{number}' for number in range(8)}
    values = {number: {'x': '1' if number < 6 else '2', 'y': '0'} for number in range(8)}
    del values[3]['y']
    assert facts.differences(values, hosts) == (
        'x is 2 on process 6 (host6) and 2 on process 7 (host7), 1 on the others; '
        'y is not given on process 3 (host3), 0 on the others'
    )
    assert facts.differences({0: {'x': '1'}, 1: {'x': '2'}}, hosts) == (
        'x is 2 on process 1 (host1), 1 on process 0 (host0)'
    )


def test_the_code_has_one_hash_and_versions_are_known():
    assert facts.code() == facts.code() and len(facts.code()) == 12
    assert facts.versions()['jax'][0].isdigit()
