"""What a user can mend is one line that begins with 'jaxgen:', and exit code 2; never a traceback."""

import os
import subprocess
import sys

import pytest
from configurations import FOLDER

TINY = f'--config={FOLDER / "quickstart.py"}:tiny'
MISTAKES = {
    'unknown mode': ([TINY, '--mode=trian'], "there is no mode 'trian'; the nearest is 'train'"),
    'unknown key': ([TINY, '--config.train.stepz=1'], "stepz'; the nearest is 'steps'"),
    'flag of another mode': ([TINY, '--prompt=a red circle'], '--prompt means nothing to --mode=train'),
    'no prompts file': ([TINY, '--mode=sample', '--prompts_file=none.txt'], 'no prompts file none.txt'),
    'no checkpoint': ([TINY, '--mode=sample'], 'no checkpoint'),
    'no folder': ([f'--config={FOLDER / "dit_folder.py"}', '--config.data.path=none'], "no folder 'none'"),
}


def run(arguments, folder):
    environment = os.environ | {
        'PYTHONPATH': str(FOLDER.parent),
        'XLA_FLAGS': '',
        'JAXGEN_DATA_DIR': str(folder / 'data'),
    }
    environment.pop('JAXGEN_TRACEBACK', None)
    command = [sys.executable, '-m', 'jaxgen.main', f'--workdir={folder / "run"}', *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes_are_one_line(mistake, tmp_path):
    arguments, message = MISTAKES[mistake]
    done = run(arguments, tmp_path)
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert lines[-1].startswith('jaxgen: ') and message in lines[-1]
    assert len([line for line in lines if line.startswith('jaxgen:')]) == 1
    assert 'Traceback' not in done.stderr
