"""Time to the first image of the quick start's network: python tests/first_image.py FOLDER [TIMES]

Trains it for 20 steps in FOLDER (kept for the next time), then draws one prompt in a process of its own:
with nothing compiled, with the compilation cache, and with the program that `--mode=plan --export` keeps and
an empty cache, in turn. Seconds are from the start of the process until the PNG is on the disk; beside them
the processor time of the whole process, which other work on the machine changes less.
"""

import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
PROMPT = 'a large red circle at the top left and a small blue square at the right on a grey background'
SHORT = ('--config.train.steps=20', '--config.optimizer.warmup=1')


def call(run: pathlib.Path, cache: pathlib.Path, *flags: str) -> tuple[float, float, str]:
    """When a process of jaxgen began, its processor seconds, and what it printed."""
    command = [
        sys.executable,
        '-m',
        'jaxgen.main',
        '--config=configs/quickstart.py',
        f'--workdir={run}',
        *SHORT,
    ]
    environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(cache)}
    with tempfile.TemporaryFile('w+') as output:
        began = time.time()
        process = subprocess.Popen(
            [*command, f'--workdir={run}', *flags],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    if process.returncode:
        sys.exit(said)
    return began, usage.ru_utime + usage.ru_stime, said


def draw(run: pathlib.Path, cache: pathlib.Path, programs: pathlib.Path) -> tuple[float, float]:
    """Seconds until the picture is there, and processor seconds."""
    shutil.rmtree(run / 'samples', ignore_errors=True)
    began, processor, said = call(
        run, cache, '--mode=sample', f'--prompt={PROMPT}', f'--executables={programs}'
    )
    assert ('Drawing by the program' in said) == any(programs.iterdir()), said
    return (run / 'samples' / '00000.png').stat().st_mtime - began, processor


def main(folder: str, times: str = '5') -> None:
    """The table."""
    names = ('run', 'warm', 'empty', 'executables', 'none')
    run, warm, empty, programs, none = (pathlib.Path(folder).resolve() / name for name in names)
    if not (run / 'train.json').exists():
        call(run, warm, '--mode=train')
    shutil.rmtree(programs, ignore_errors=True)
    none.mkdir(exist_ok=True)
    _, exporting, _ = call(run, warm, '--mode=plan', '--compile=none', f'--export={programs}')
    draw(run, warm, none)
    ways = {'cold': (empty, none), 'with the cache': (warm, none), 'with the executable': (empty, programs)}
    taken = {way: [] for way in ways}
    for _ in range(int(times)):
        for way, (cache, kept) in ways.items():
            shutil.rmtree(empty, ignore_errors=True)
            taken[way].append(draw(run, cache, kept))
    print(f'| one prompt, {times} processes each, in turn | seconds: median (least, most) | processor |')
    print('|---|---|---|')
    for way, rows in taken.items():
        seconds, processor = zip(*rows)
        spread = f'{statistics.median(seconds):.1f} ({min(seconds):.1f}, {max(seconds):.1f})'
        print(f'| {way} | {spread} | {statistics.median(processor):.1f} |')
    print(f'Exporting the programs of 1 and of 16 prompts: {exporting:.0f} processor seconds.')


if __name__ == '__main__':
    main(*sys.argv[1:])
