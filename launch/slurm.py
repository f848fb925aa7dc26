"""A run on a Slurm cluster: one process a task, which find each other by what Slurm tells them.

    python launch/slurm.py --name=dit --nodes=4 --tasks=1 --gpus=8 --time=24:00:00 -- \
        --config=configs/dit_imagenet.py --workdir=/shared/runs/dit

Two minutes before its time is over, or when it is preempted, every task is told (SIGTERM), saves and leaves;
the job then puts itself back into the queue and goes on. `--dry_run` prints the script that sbatch would get.
"""

import argparse
import os
import shlex
import sys

from slices import fail, perform, split

# A task that has saved may leave before the others have: it must not take them along.
SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
{more}#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={log}
#SBATCH --signal=TERM@120
cd {root} || exit 1
srun --kill-on-bad-exit=0 {command}
code=$?
if [ "$code" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def script(options: argparse.Namespace, command: list[str]) -> str:
    """What sbatch is given."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    asked = {
        'gpus-per-node': options.gpus,
        'time': options.time,
        'partition': options.partition,
        'account': options.account,
    }
    more = ''.join(f'#SBATCH --{key}={value}\n' for key, value in asked.items() if value)
    return SCRIPT.format(
        name=options.name,
        nodes=options.nodes,
        tasks=options.tasks,
        more=more,
        log=options.log or f'{options.name}-%j.log',
        root=shlex.quote(root),
        command=shlex.join([options.python, '-m', 'jaxgen.main', *command]),
    )


def main() -> int:
    """Read the command line, print or submit."""
    ours, command = split(sys.argv[1:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--name', required=True)
    parser.add_argument('--nodes', type=int, default=1)
    parser.add_argument('--tasks', type=int, default=1, help='processes a node')
    parser.add_argument('--gpus', type=int, default=0, help='GPUs a node')
    parser.add_argument('--time', default='')
    parser.add_argument('--partition', default='')
    parser.add_argument('--account', default='')
    parser.add_argument('--log', default='')
    parser.add_argument('--python', default=sys.executable)
    parser.add_argument('--dry_run', action='store_true', help='print the script only')
    options = parser.parse_args(ours)
    if not any(argument.startswith('--workdir=') for argument in command):
        fail("give jaxgen's flags after --, with a --workdir=... that all nodes see.")
    text = script(options, command)
    if options.dry_run:
        print(text, end='')
    else:
        perform([['sbatch']], False, text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
