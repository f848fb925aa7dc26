"""Several processes train as one does; what is missing, different or dead is named, and nothing is lost.

Whole processes of `launch/local_pod.py`, two by default and four in the full run.
"""

import importlib.util
import signal
import time

import numpy as np
import pytest
from PIL import Image
from pods import ROOT, STEPS, Meeting, Run, copied

BEGIN = ('--nocompilation_cache', '--mode=train', '--config=configs/sit_folder.py:tiny')
NUMBERS = [2, pytest.param(4, marks=pytest.mark.slow)]


@pytest.fixture(scope='module')
def code(tmp_path_factory):
    return copied(tmp_path_factory.mktemp('code'))


@pytest.fixture(scope='module')
def whole(code, tmp_path_factory):
    """Finished runs that nothing interrupted, by their number of processes."""
    finished = {}

    def by(processes: int) -> Run:
        if processes not in finished:
            run = Run(code, tmp_path_factory.mktemp(f'whole{processes}') / 'run')
            assert run.go(processes) == 0, run.said()
            finished[processes] = run
        return finished[processes]

    return by


@pytest.fixture
def port():
    spec = importlib.util.spec_from_file_location('local_pod', ROOT / 'launch' / 'local_pod.py')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / 'launch')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module.free_port()


@pytest.mark.parametrize('processes', NUMBERS)
def test_several_train_as_one_and_restore_elsewhere(processes, whole, code, tmp_path):
    run, alone = whole(processes), Run(code, tmp_path / 'alone')
    assert alone.go(0) == 0, alone.said()
    ours, theirs = run.lines(), alone.lines()
    assert [line['step'] for line in ours] == [line['step'] for line in theirs] and len(ours) > STEPS // 2
    for line, other in zip(ours, theirs):
        assert line.keys() == other.keys()
        assert all(np.isclose(line[name], other[name], rtol=1e-5, atol=1e-5) for name in line), (line, other)
    said = run.said()  # the first process speaks for all
    assert said.count('] train in') == said.count('fit together') == said.count(f'step {STEPS}/{STEPS}') // 2
    for number in range(processes):
        kept = (run.workdir / 'logs' / f'{number}.log').read_text().splitlines()
        assert kept and all(f'[{number}] {line}' in said for line in kept)
    before = run.fingerprints()
    for number in (0, 6 - processes) if processes > 2 else (0,):
        (run.workdir / 'train.json').unlink()  # written again, of the state as it is restored
        assert run.go(number) == 0 and 'is complete' in run.said(), run.said()
        assert run.fingerprints() == before


@pytest.mark.parametrize('processes', NUMBERS)
def test_killed_and_asked_to_leave_it_ends_where_it_would_have(processes, whole, code, tmp_path):
    run, last = Run(code, tmp_path / 'run'), processes - 1
    run.start(processes)
    run.reach(STEPS // 3)
    run.kill(last)
    began = time.monotonic()
    assert run.end() == 128 + signal.SIGKILL, run.said()
    assert time.monotonic() - began < 60
    for number in range(last):
        assert f'[{number}] jaxgen: process {last} (' in run.said(), run.said()
    run.start(processes)
    run.reach(STEPS // 2)
    run.kill(last, signal.SIGTERM)
    assert run.end() == 128 + signal.SIGTERM, run.said()
    left = run.checkpoints()[-1]
    assert f'Left at step {left} of {STEPS}, which is saved' in run.said()
    assert run.go(processes) == 0, run.said()
    assert f'Going on from step {left}' in run.said()
    assert run.result() == whole(processes).result()


@pytest.mark.slow
def test_ctrl_c_and_the_death_of_the_first(whole, code, tmp_path):
    run = Run(code, tmp_path / 'run')
    run.start(4)
    run.reach(STEPS // 3)
    run.kill(0)
    began = time.monotonic()
    assert run.end() == 128 + signal.SIGKILL, run.said()
    assert time.monotonic() - began < 60
    for number in (1, 2, 3):
        assert f'[{number}] jaxgen: process 0 (' in run.said(), run.said()
    run.start(4)
    run.reach(STEPS // 2)
    run.launcher.send_signal(signal.SIGINT)
    assert run.end() == 128 + signal.SIGINT, run.said()
    assert f'Left at step {run.checkpoints()[-1]} of {STEPS}' in run.said()
    assert run.go(4) == 0, run.said()
    assert run.result() == whole(4).result()


@pytest.mark.slow
def test_a_machine_that_falls_silent_is_named(code, tmp_path):
    run = Run(code, tmp_path / 'run')
    run.start(2)
    run.reach(STEPS // 3)
    run.kill(1, signal.SIGSTOP)
    began, line = time.monotonic(), '[0] jaxgen: process 1 ('
    while line not in run.said():
        assert time.monotonic() - began < 60, run.said()
        time.sleep(0.5)
    assert 'has not been heard of for 40 s' in run.said()
    run.kill(1, signal.SIGKILL)
    assert run.end() == 1, run.said()


def test_another_config_and_other_code_are_named_by_all(code, port, tmp_path):
    changed = copied(tmp_path / 'changed')
    file = changed / 'jaxgen' / 'keys.py'
    file.write_bytes(file.read_bytes() + b'\n')
    meeting = Meeting(port, 4)
    for number in range(4):
        more = ['--config.model.depth=3'] if number == 2 else []
        meeting.come(number, changed if number == 1 else code, *BEGIN, f'--workdir={tmp_path}/run', *more)
    for code_, said in meeting.end().values():
        assert code_ == 2 and said.count('\n') == 1, said
        assert 'the code is ' in said and ' on process 1 (' in said
        assert 'model.depth is 3 on process 2 (' in said and '2 on the others' in said
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('missing', [0, 2])
def test_a_missing_process_is_named_by_all_in_time(missing, code, port, tmp_path):
    meeting, began = Meeting(port, 4), time.monotonic()
    for number in {0, 1, 2, 3} - {missing}:
        meeting.come(number, code, *BEGIN, f'--workdir={tmp_path}/run', '--preflight_seconds=8')
    for code_, said in meeting.end().values():
        assert code_ == 2 and said.startswith(f'jaxgen: process {missing} of 4 ') and '8 s' in said, said
    assert time.monotonic() - began < 60


def test_one_workdir_and_one_data_set_are_needed(code, port, tmp_path):
    """A workdir of one's own is a relative one here: the processes run in folders of their own."""
    other = copied(tmp_path / 'other')
    meeting = Meeting(port, 2)
    for number, folder in enumerate((code, other)):
        meeting.come(number, folder, *BEGIN, '--workdir=own')
    for code_, said in meeting.end().values():
        assert code_ == 2 and 'own is another folder on process 1 (' in said, said


def test_the_exception_of_one_stops_all_with_its_message(code, port, tmp_path):
    """The folder of images is a relative path, which the second process has not."""
    other = copied(tmp_path / 'other')
    for number in range(4):
        path = code / 'images' / f'{number % 2}' / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (64, 64)).save(path)
    meeting = Meeting(port, 2)
    for number, folder in enumerate((code, other)):
        meeting.come(number, folder, '--config=configs/sit_folder.py', f'--workdir={tmp_path}/run')
    (code_0, said_0), (code_1, said_1) = meeting.end().values()
    assert code_0 == code_1 == 2, (said_0, said_1)
    own = said_1.splitlines()[-1]
    assert own.startswith('jaxgen: ') and 'images' in own
    theirs = said_0.splitlines()[-1]
    assert theirs.startswith('jaxgen: process 1 (') and theirs.endswith(own.removeprefix('jaxgen: ')), theirs
