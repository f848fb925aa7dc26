"""The launch scripts: what they would run, and a whole life of a slice on a stand-in for gcloud."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from jaxgen.estimate.topology import SLICES

ROOT = pathlib.Path(__file__).parents[2]
JOB = [
    '--config=configs/dit_imagenet.py',
    "--config.mesh={'data': 2, 'fsdp': -1}",
    '--workdir=gs://bucket/a b',
]

# State is a file; what is sent to workers is run here, in a home of the slice's own. Where the slice was just
# created, or the job has just ended, $FAILS looks at the state fail.
GCLOUD = """#!/bin/bash
set -e
home="$FAKE/home"
sent="${@: -1:1}"
sent="${sent#--command=}"
echo "$*" >> "$FAKE/calls"
case "$*" in
  *"queued-resources create"*) mkdir -p "$home"; echo ACTIVE > "$FAKE/state"; echo $FAILS > "$FAKE/fails" ;;
  *"queued-resources describe"*)
    left=$(cat "$FAKE/fails" || echo 0)
    echo $((left - 1)) > "$FAKE/fails"
    if [ "$left" -gt 0 ]; then echo "ERROR: UNAVAILABLE: try later" >&2; exit 1; fi
    cat "$FAKE/state" || { echo "ERROR: NOT_FOUND: Resource 'mine' was not found." >&2; exit 1; } ;;
  *"queued-resources delete"*) rm -rf "$home"; rm "$FAKE/state" ;;
  *"tpu-vm scp"*) cp "$5" "$home/jaxgen.tar.gz" ;;
  *"uv pip install"*)
    mkdir -p "$home/jaxgen/.venv/bin"
    tar -xzf "$home/jaxgen.tar.gz" -C "$home/jaxgen"
    cp "$FAKE/python" "$home/jaxgen/.venv/bin" ;;
  *"tpu-vm ssh"*) cd "$home"; exec bash -c "$sent" ;;
esac
"""
# The first life of the job is cut short, the second ends well.
PYTHON = """#!/bin/bash
echo "begun with $*"
sleep 0.5
echo $FAILS > "$FAKE/fails"
if [ -e "$FAKE/lived" ]; then echo "went on"; exit $ENDS; fi
touch "$FAKE/lived"
echo "leaving after this step"
echo $BECOMES > "$FAKE/state"
exit 143
"""


def launch(script, *arguments, **more):
    command = [sys.executable, f'launch/{script}.py', *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **more)


def dry(script, *arguments):
    done = launch(script, *arguments, '--dry_run', '--', *JOB)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cloud(folder, becomes='PREEMPTED', ends=0, fails=0):
    """An environment whose gcloud is the stand-in."""
    for name, text in (('gcloud', GCLOUD), ('python', PYTHON)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = f'{folder}:{os.environ["PATH"]}'
    said = {'FAKE': str(folder), 'BECOMES': becomes, 'ENDS': str(ends), 'FAILS': str(fails)}
    return os.environ | {'PATH': path} | said


SLICE = ('--name=mine', '--zone=us-west4-a', '--topology=v5e:4x8', '--spot', '--poll=0.1')


@pytest.mark.parametrize('fails', [0, 1])
def test_a_slice_that_is_taken_away_is_asked_for_again_and_the_run_goes_on(fails, tmp_path):
    done = launch('tpu_vm', 'run', *SLICE, '--', *JOB, env=cloud(tmp_path, fails=fails))
    assert done.returncode == 0, done.stderr
    assert ('asking again: ERROR: UNAVAILABLE' in done.stderr) == bool(fails)
    calls = (tmp_path / 'calls').read_text()
    assert calls.count('queued-resources create') == 2 and calls.count('queued-resources delete') == 2
    assert not (tmp_path / 'state').exists()  # given back at the end
    told = [line for line in done.stdout.splitlines() if not line.startswith('mine:')]
    begun = (
        "begun with -m jaxgen.main --config=configs/dit_imagenet.py --config.mesh={'data': 2, 'fsdp': -1} "
    )
    assert told == [begun + '--workdir=gs://bucket/a b', 'leaving after this step', told[0], 'went on']


@pytest.mark.parametrize('fails', [0, 1])
def test_a_job_that_fails_is_not_started_again(fails, tmp_path):
    (tmp_path / 'lived').touch()
    done = launch('tpu_vm', 'run', *SLICE, '--', *JOB, env=cloud(tmp_path, ends=3, fails=fails))
    assert done.returncode == 3 and 'ended with 3' in done.stderr and '`down`' in done.stderr
    assert (tmp_path / 'calls').read_text().count('queued-resources create') == 1
    assert (tmp_path / 'state').read_text() == 'ACTIVE\n'


def test_a_gcloud_that_goes_on_failing_is_quoted(tmp_path):
    done = launch('tpu_vm', 'up', *SLICE, env=cloud(tmp_path, fails=99))
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and 'UNAVAILABLE: try later' in last and '`down`' in last
    assert (tmp_path / 'state').read_text() == 'ACTIVE\n' and not (tmp_path / 'home/jaxgen').exists()


def test_a_job_asked_to_leave_on_a_slice_that_stays_is_not_started_again(tmp_path):
    done = launch('tpu_vm', 'run', *SLICE, '--', *JOB, env=cloud(tmp_path, becomes='ACTIVE'))
    assert done.returncode == 143 and 'has saved' in done.stderr


def test_the_archive_holds_the_checkout(tmp_path):
    environment = cloud(tmp_path)
    done = launch('tpu_vm', 'up', *SLICE, env=environment)
    assert done.returncode == 0, done.stderr
    for name in ('pyproject.toml', 'jaxgen/main.py', 'launch/tpu_vm.py', 'configs/dit_imagenet.py'):
        assert (tmp_path / 'home/jaxgen' / name).read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.parametrize('action', ['run', 'up', 'start', 'logs', 'stop', 'down'])
def test_dry_runs_print_commands_that_a_shell_can_read(action):
    text = dry('tpu_vm', action, *SLICE)
    assert text and all(re.match('gcloud (alpha )?compute tpus ', line) for line in text.splitlines())
    subprocess.run(['bash', '-n'], input=text, text=True, check=True)
    if action == 'run':
        assert '--type=v5litepod --topology=4x8 ' in text and '--provisioning-model=spot' in text
        assert '--worker=all' in text and '--accelerator-type' not in text


@pytest.mark.parametrize('generation', ['v4', 'v5e', 'v5p', 'v6e'])
def test_every_slice_that_is_planned_for_is_asked_for_by_its_shape(generation):
    family = {'v5e': 'v5litepod'}.get(generation, generation)
    for shape in (SLICES[generation][0], SLICES[generation][-1]):
        text = dry('tpu_vm', 'up', '--name=a', '--zone=z', f'--topology={generation}:{shape}')
        assert f'--type={family} --topology={shape} ' in text
    known = subprocess.run(
        [sys.executable, '-c', f'import slices; print(*slices.GENERATIONS[{generation!r}][4])'],
        cwd=ROOT / 'launch',
        capture_output=True,
        text=True,
    )
    assert set(SLICES[generation]) <= set(known.stdout.split()), known.stderr


@pytest.mark.parametrize(
    'topology, kind, hosts',
    [('v5e:2x4', 'v5litepod-8', 1), ('v5p:4x4x4', 'v5p-128', 16), ('v6e:16x16', 'v6e-256', 64)],
)
def test_slices_by_the_names_of_the_clouds(topology, kind, hosts):
    text = dry('gke', '--name=dit', '--image=an/image:1', f'--topology={topology}', '--slices=2')
    first, _, manifest = text.partition('\n')
    assert first == 'kubectl apply -f -'
    (job,) = json.loads(manifest)['spec']['replicatedJobs']
    pod = job['template']['spec']['template']['spec']
    assert job['replicas'] == 2 and job['template']['spec']['parallelism'] == hosts
    assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == topology.partition(':')[2]
    command = pod['containers'][0]['command']
    assert command[:-1] == ['python', '-m', 'jaxgen.main', *JOB] and '--preflight_seconds=' in command[-1]
    asked = dry(
        'gke', '--name=dit', '--image=i', f'--topology={topology}', '--with=xpk', '--cluster=c', '--zone=z'
    )
    assert f'--tpu-type={kind} ' in asked


def test_a_shape_that_xpk_cannot_ask_for_is_refused():
    assert dry('gke', '--name=dit', '--image=i', '--topology=v4:4x4x16')
    more = ('--with=xpk', '--cluster=c', '--zone=z', '--dry_run', '--', *JOB)
    done = launch('gke', '--name=dit', '--image=i', '--topology=v4:4x4x16', *more)
    assert done.returncode == 2 and '4x4x16' in done.stderr


def test_what_jaxgen_refuses_ends_the_set():
    refused = subprocess.run(
        [sys.executable, '-m', 'jaxgen.main', '--config=configs/sit_folder.py:tiny', '--mode=trian'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    assert "no mode 'trian'" in refused.stderr
    text = dry('gke', '--name=dit', '--image=i')
    spec = json.loads(text.partition('\n')[2])['spec']
    job = spec['replicatedJobs'][0]['template']['spec']
    (rule,) = job['podFailurePolicy']['rules']
    (container,) = job['template']['spec']['containers']
    assert rule['action'] == 'FailJob' and job['template']['spec']['restartPolicy'] == 'Never'
    assert rule['onExitCodes'] == {
        'containerName': container['name'],
        'operator': 'In',
        'values': [refused.returncode],
    }
    (rule,) = spec['failurePolicy']['rules']
    assert rule == {'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}


def test_slurm_jobs_go_on_after_their_time():
    text = dry('slurm', '--name=dit', '--nodes=4', '--gpus=8', '--time=24:00:00')
    subprocess.run(['bash', '-n'], input=text, text=True, check=True)
    assert '#SBATCH --nodes=4' in text and '#SBATCH --gpus-per-node=8' in text and 'scontrol requeue' in text
    assert "'--workdir=gs://bucket/a b'" in text


@pytest.mark.parametrize('topology', ['v5e:2x2x2', 'v9:2x2', 'v5e', 'v5e:0x4', 'v5p:2x4'])
def test_slices_that_do_not_exist_are_refused(topology):
    done = launch('gke', '--name=a', '--image=i', f'--topology={topology}', '--dry_run', '--', *JOB)
    assert (
        done.returncode == 2
        and done.stderr.startswith('launch: --topology is ')
        and done.stderr.count('\n') == 1
    )


@pytest.mark.parametrize(
    'topology, nearest', [('v5e:3x4', '4x4'), ('v5p:2x2x16', '4x4x4'), ('v6e:4x2', '2x4')]
)
def test_the_nearest_slice_that_does_exist_is_named(topology, nearest):
    for script, more in (('tpu_vm', ('up', '--name=a', '--zone=z')), ('gke', ('--name=a', '--image=i'))):
        done = launch(script, *more, f'--topology={topology}', '--dry_run', '--', *JOB)
        assert done.returncode == 2 and f'{topology.partition(":")[0]}:{nearest}.' in done.stderr, done.stderr


@pytest.mark.parametrize('script, more', [('tpu_vm', ('run', *SLICE)), ('gke', ('--name=a', '--image=i'))])
def test_a_workdir_that_would_not_outlive_the_slice_is_refused(script, more):
    done = launch(script, *more, '--dry_run', '--', '--workdir=runs/here')
    assert done.returncode == 2 and 'gs://' in done.stderr
