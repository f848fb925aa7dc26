"""A Cloud TPU VM slice: create it or use it, copy this checkout, install, start on all workers, follow, stop.

    python launch/tpu_vm.py run --name=mine --zone=us-west4-a --topology=v5e:4x8 --spot -- \
        --config=configs/dit_imagenet.py --workdir=gs://bucket/dit

`run` does it all and stays: it shows the log of worker 0, and where a slice is taken away it asks for another
and starts the same command there, which goes on from its last checkpoint. `up`, `start`, `logs`, `stop` (it
saves first) and `down` (deletes the slice) are its parts. `--dry_run` prints the commands. Needs gcloud.
"""

import argparse
import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time

from slices import fail, named, perform, split

ACTIONS = ('run', 'up', 'start', 'logs', 'stop', 'down')
GONE = ('PREEMPTED', 'TERMINATED', 'STOPPED', 'SUSPENDED', 'SUSPENDING', 'FAILED', '')
LEFT = (130, 143)  # asked to leave, and saved
TRIES = 10  # of a look at the state, where gcloud fails

INSTALL = (
    'mkdir -p jaxgen && tar -xzf jaxgen.tar.gz -C jaxgen && cd jaxgen && '
    'python3 -m pip install --user --quiet uv && '
    '(test -d .venv || ~/.local/bin/uv venv --quiet --python 3.12 .venv) && '
    "~/.local/bin/uv pip install --quiet --python .venv/bin/python -e '.[tpu,gcs,hub]'"
)
# The exit code is written by what waits for the process: it is there as soon as the process has ended.
START = (
    'cd jaxgen && rm -f ../jaxgen.exit ../jaxgen.pid && '
    '(setsid nohup sh -c {script} < /dev/null > ../jaxgen.log 2>&1 &) ; '
    'until [ -s ../jaxgen.pid ]; do sleep 0.1; done'
)
FOLLOW = 'tail -n +{line} -F --pid="$(cat jaxgen.pid)" jaxgen.log; sleep 1; exit "$(cat jaxgen.exit)"'
STOP = 'pid=$(cat jaxgen.pid) && kill -TERM "$pid"; tail -f /dev/null --pid="$pid"'


class Machine:
    """The commands about one slice."""

    def __init__(self, options: argparse.Namespace, command: list[str]):
        self.options, self.command = options, command
        self.slice = named(options.topology)
        self.place = [f'--zone={options.zone}'] + (
            [f'--project={options.project}'] if options.project else []
        )

    def create(self) -> list[str]:
        """Ask for the slice; the queue gives it when there is one."""
        options = self.options
        wanted = [
            f'--type={self.slice.family}',
            f'--topology={self.slice.shape}',
            f'--runtime-version={options.runtime or self.slice.runtime}',
        ]
        # Without alpha gcloud knows no type after v4; with it, --spot alone asks for both kinds at once.
        gcloud, *queue = self._queue('create')
        return [
            *(gcloud, 'alpha', *queue),
            f'--node-id={options.name}',
            *wanted,
            *(['--provisioning-model=spot'] if options.spot else []),
        ]

    def delete(self) -> list[str]:
        """Give it back."""
        return [*self._queue('delete'), '--force', '--quiet']

    def state(self) -> list[str]:
        """Print its state."""
        return [*self._queue('describe'), '--format=value(state.state)']

    def install(self, archive: str) -> list[list[str]]:
        """Copy an archive of the checkout to all workers and install it there."""
        vm = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'scp', archive, f'{self.options.name}:jaxgen.tar.gz']
        return [[*vm, *self.place, '--worker=all'], self.ssh(INSTALL)]

    def start(self) -> list[str]:
        """Start the command on all workers, which find each other by themselves."""
        job = shlex.join(['.venv/bin/python', '-m', 'jaxgen.main', *self.command])
        script = f'{job} & echo $! > ../jaxgen.pid; wait $!; echo $? > ../jaxgen.exit'
        return self.ssh(START.format(script=shlex.quote(script)))

    def ssh(self, command: str, worker: str = 'all') -> list[str]:
        """Run a command on workers."""
        vm = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', self.options.name]
        return [*vm, *self.place, f'--worker={worker}', f'--command={command}']

    def _queue(self, verb: str) -> list[str]:
        return ['gcloud', 'compute', 'tpus', 'queued-resources', verb, self.options.name, *self.place]


@contextlib.contextmanager
def checkout() -> str:
    """This checkout as an archive: what git tracks or would, with the changes not yet committed."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with tempfile.TemporaryDirectory() as folder:
        archive = os.path.join(folder, 'jaxgen.tar.gz')
        listed = subprocess.run(
            ['git', '-C', root, 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
            capture_output=True,
        )
        if listed.returncode:
            fail(f'{root} is no git checkout; launch from one.')
        names = b'\0'.join(
            name
            for name in listed.stdout.split(b'\0')
            if name and os.path.exists(os.path.join(root.encode(), name))
        )
        packed = subprocess.run(['tar', '-czf', archive, '-C', root, '--null', '-T', '-'], input=names)
        if packed.returncode:
            fail('the checkout could not be packed.')
        yield archive


def state_of(machine: Machine) -> str:
    """The slice's state, '' where there is none. Where gcloud fails nothing is known: it is asked again."""
    name = machine.options.name
    for left in reversed(range(TRIES)):
        found = subprocess.run(machine.state(), capture_output=True, text=True)
        if found.returncode == 0:
            return found.stdout.strip().upper() or 'STATE_UNSPECIFIED'
        if re.search('not[ _]found', found.stderr, re.IGNORECASE):
            return ''
        said = ' '.join(found.stderr.split()) or f'exit code {found.returncode}'
        if left:
            print(f'{name}: gcloud failed, asking again: {said}', file=sys.stderr, flush=True)
            time.sleep(machine.options.poll)
    fail(f'{name} may be there or in the queue (`down` deletes it), but gcloud fails: {said}', 1)


def bring_up(machine: Machine) -> None:
    """A slice that is there and installed: the one of this name, or a new one in its place."""
    options = machine.options
    if options.dry_run:
        perform([machine.create(), machine.state(), *machine.install('jaxgen.tar.gz')], True)
        return
    state = state_of(machine)
    if state and state in GONE:
        perform([machine.delete()], False)
    if state in GONE:
        perform([machine.create()], False)
    while (state := state_of(machine)) != 'ACTIVE':
        if state in GONE:
            fail(f'{options.name} is {state or "not there"}; see: {shlex.join(machine.state())}', 1)
        print(f'{options.name}: {state.lower()}', file=sys.stderr, flush=True)
        time.sleep(options.poll)
    with checkout() as archive:
        perform(machine.install(archive), False)


def follow(machine: Machine) -> int:
    """Show worker 0's log until its process ends: its exit code, or that of ssh where the slice is gone."""
    lines = 1
    while True:
        command = machine.ssh(FOLLOW.format(line=lines), worker='0')
        if machine.options.dry_run:
            perform([command], True)
            return 0
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as shown:
            for line in shown.stdout:
                lines += 1
                print(line, end='', flush=True)
        if shown.returncode != 255 or state_of(machine) != 'ACTIVE':  # 255: ssh itself
            return shown.returncode
        time.sleep(machine.options.poll)


def taken_away(machine: Machine) -> bool:
    """Whether the slice is going: it may say so only some time after its processes were told."""
    for _ in range(5):
        if state_of(machine) != 'ACTIVE':
            return True
        time.sleep(machine.options.poll)
    return False


def run(machine: Machine) -> int:
    """Train to the end, on as many slices as it takes."""
    while True:
        bring_up(machine)
        perform([machine.start()], machine.options.dry_run)
        code = follow(machine)
        if machine.options.dry_run or code == 0:
            break
        if not taken_away(machine):
            hint = (
                'it was asked to leave and has saved; run this again to go on'
                if code in LEFT
                else 'see its log above'
            )
            fail(f'the command ended with {code}: {hint}. The slice is still there: `down` deletes it.', code)
        print(f'{machine.options.name} was taken away; asking for another.', file=sys.stderr, flush=True)
    if not machine.options.keep:
        perform([machine.delete()], machine.options.dry_run)
    return 0


def main() -> int:
    """Read the command line and do what it says."""
    ours, command = split(sys.argv[1:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('action', choices=ACTIONS)
    parser.add_argument('--name', required=True)
    parser.add_argument('--zone', required=True)
    parser.add_argument('--project', default='')
    parser.add_argument('--topology', default='v5e:2x4', help='as for --mode=plan')
    parser.add_argument('--runtime', default='', help="the VM's image; default by generation")
    parser.add_argument('--spot', action='store_true', help='cheaper, and may be taken away at any time')
    parser.add_argument(
        '--keep', action='store_true', help='run: leave the slice there when the command has ended'
    )
    parser.add_argument('--poll', type=float, default=30, help='seconds between looks at its state')
    parser.add_argument('--dry_run', action='store_true', help='print the commands only')
    options = parser.parse_args(ours)
    if options.action in ('run', 'start'):
        workdir = next((a.partition('=')[2] for a in command if a.startswith('--workdir=')), '')
        if not command or not workdir.startswith('gs://'):
            fail(
                "give jaxgen's flags after --, with a --workdir=gs://... that all workers see and that "
                'outlives the slice.'
            )
    machine = Machine(options, command)
    if options.action == 'run':
        return run(machine)
    if options.action == 'up':
        bring_up(machine)
        return 0
    if options.action == 'logs':
        return follow(machine)
    one = {'start': machine.start, 'stop': lambda: machine.ssh(STOP), 'down': machine.delete}
    perform([one[options.action]()], options.dry_run)
    return 0


if __name__ == '__main__':
    sys.exit(main())
