"""Killed, asked to leave, damaged, out of disk: a run goes on and ends bit for bit where it would have.

Whole processes of `python -m jaxgen.main`. Every random choice is of one seed, printed with a failure; set
JAXGEN_SURVIVAL_SEED to have it again.
"""

import os
import random
import signal
import subprocess
import time

import pytest
from survival import EVERY, STEPS, Run, delete_a_chunk, kill_somewhere, truncate


@pytest.fixture(scope='module')
def dice():
    seed = int(os.environ.get('JAXGEN_SURVIVAL_SEED', time.time()))
    print(f'JAXGEN_SURVIVAL_SEED={seed}')
    return random.Random(seed)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """What a run leaves that nothing interrupted."""
    run = Run(tmp_path_factory.mktemp('whole'), 'run')
    assert run.go() == 0, run.said()
    result = run.result()
    assert len(result['pictures']) == 6 and result['lines'][-1]['step'] == STEPS
    return result


def finish(run: Run, whole: dict, *more: str) -> None:
    assert run.go(*more) == 0, run.said()
    result = run.result()
    for part in whole:
        assert result[part] == whole[part], (part, run.said())


def test_kills_signals_and_damage_change_nothing(tmp_path, whole, dice):
    run = Run(tmp_path, 'run')
    run.start()
    run.reach(dice.randrange(STEPS // 4))
    run.hold(2)  # so that one may be damaged
    run.kill()
    said = truncate(run)
    run.start('--config.train.threads=0')
    run.reach(STEPS // 4)
    run.save()
    run.kill()
    assert said in run.said() and list(run.workdir.glob('checkpoints/*.damaged'))
    run.start()
    run.reach(STEPS // 2)
    assert run.kill(signal.SIGTERM) == 128 + signal.SIGTERM, run.said()
    assert f'{run.checkpoints()[-1]} of {STEPS}, which is saved' in run.said()
    assert not (run.workdir / 'samples').exists()
    said = delete_a_chunk(run)
    finish(run, whole, '--config.train.threads=1')
    assert said in run.said()
    check_second_call(run, whole)


def check_second_call(run, whole):
    """The same command once more is done at once; another config is refused; neither changes anything."""
    assert run.go(mode=()) == 0 and f'is complete: {STEPS} steps of {STEPS}' in run.said()
    assert run.go('--config.model.depth=1', f'--config.train.steps={2 * STEPS}', mode=()) == 2
    assert 'was trained by another config: model.depth (was 2, is 1). Put' in run.said().splitlines()[-1]
    assert run.result() == whole


@pytest.mark.slow
def test_ctrl_c_before_the_first_save(tmp_path, whole):
    run = Run(tmp_path, 'run', '--config.train.save_every=1000')
    run.start()
    run.reach(4)
    assert run.kill(signal.SIGINT) == 128 + signal.SIGINT, run.said()
    assert len(run.checkpoints()) == 1
    finish(run, whole)


def test_a_full_disk_costs_no_checkpoint(tmp_path, whole):
    run = Run(tmp_path, 'run')
    run.workdir.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8m', 'none', run.workdir]).returncode:
        pytest.skip('mounting a small disk takes root')
    try:
        run.start()
        run.hold(2)
        with open(run.workdir / 'ballast', 'wb', buffering=0) as ballast, pytest.raises(OSError):
            while True:
                ballast.write(bytes(4096))
        assert run.end() == 1, run.said()
        good = run.checkpoints()
        assert good and good[-1] < STEPS
        assert 'No space left on device' in run.said() and 'Training goes on' in run.said()
        last = run.said().splitlines()[-1]
        assert last.startswith('jaxgen: ') and f'goes on from step {good[-1]}' in last
        assert 'Traceback' not in run.said()
        (run.workdir / 'ballast').unlink()
        finish(run, whole)
    finally:
        subprocess.run(['umount', '-l', run.workdir], check=True)


@pytest.mark.slow
def test_twenty_kills(tmp_path, whole, dice):
    run, told = Run(tmp_path, 'run'), []
    for _ in range(20):
        if run.checkpoints()[-1:] == [STEPS]:
            finish(run, whole)
            told.append('finished')
            run = Run(tmp_path, f'run{len(told)}')
        told.append(kill_somewhere(run, dice))
        print(told[-1])
    finish(run, whole)
    assert sum('1 unfinished' in line for line in told) >= 3, told


@pytest.mark.slow
@pytest.mark.parametrize('harm', [truncate, delete_a_chunk])
@pytest.mark.parametrize('threads', [0, 5])
def test_damage_with_other_threads(tmp_path, whole, dice, harm, threads):
    run = Run(tmp_path, 'run')
    run.start()
    run.reach(dice.randrange(STEPS - EVERY))
    run.hold(2)
    run.kill()
    said = harm(run)
    finish(run, whole, f'--config.train.threads={threads}')
    assert said in run.said()
