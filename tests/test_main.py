"""What a user can mend is one line that begins with 'jaxgen:' and exit code 2, before anything compiles."""

import logging
import os
import subprocess
import sys

import jax.numpy as jnp
import pytest
from compilations import compilations
from configurations import FOLDER
from etils import epath
from PIL import Image

from jaxgen import main
from jaxgen.training.checkpoint import Checkpoints

TINY = f'--config={FOLDER / "quickstart.py"}:tiny'
CLASSES = f'--config={FOLDER / "dit_folder.py"}:tiny'
PICTURES = f'--config={FOLDER / "dit_folder.py"}'
SAMPLE, BOTH = [TINY, '--mode=sample'], [TINY, '--mode=train,sample']
LABELS = "--config.conditioner={'name':'labels','classes':4}"

# Flags, and a part of what is said; {here} is a folder with the files of `files` below.
MISTAKES = {
    'no config': (['--mode=train'], '--config is missing'),
    'config not there': (['--config=none.py'], 'there is no config file none.py'),
    'config is a folder': (['--config={here}'], 'is a folder; name a file in it'),
    'config is no Python': (['--config={here}/prompts.txt'], 'a config is a Python file'),
    'config raises': (['--config={here}/raises.py'], 'does not run: ZeroDivisionError: division by zero'),
    'config without get_config': (['--config={here}/empty.py'], 'has no function get_config'),
    'config of something else': (['--config={here}/number.py'], 'gives a int; it must give a ConfigDict'),
    'unknown variant': ([TINY + 'y'], "has no variant 'tinyy'; it has '', 'tiny'"),
    'unknown flag': ([TINY, '--promt=a'], "Unknown command line flag 'promt'. Did you mean: prompt"),
    'flag of another type': ([TINY, '--mode=sample', '--count=many'], 'flag --count=many: invalid literal'),
    'no flag': ([TINY, 'train'], "'train' is no flag"),
    'flag of another mode': ([TINY, '--prompt=a red circle'], '--prompt means nothing to --mode=train'),
    'programs not there': ([*SAMPLE, '--executables={here}/gone'], '--executables is what --mode=plan wrote'),
    'unknown mode': ([TINY, '--mode=trian'], "there is no mode 'trian'; the nearest is 'train'"),
    'unknown second mode': ([TINY, '--mode=train,sampel'], "'sampel'; the nearest is 'sample'"),
    'override without a value': ([TINY, '--config.train.steps'], 'write --config.train.steps=value'),
    'override below a value': ([TINY, '--config.train.steps.x=1'], 'steps is 3, no section'),
    'unknown section': ([TINY, '--config.trian.steps=1'], "no key 'trian'; the nearest is 'train'"),
    'unknown key': ([TINY, '--config.train.stepz=1'], "stepz'; the nearest is 'steps'"),
    'section of another type': ([TINY, '--config.model=dit'], "model is 'dit'; it must be a section"),
    'another type': ([TINY, '--config.train.steps=many'], "train.steps is 'many', a str; it must be int"),
    'elements of another type': ([TINY, "--config.data.objects=('a',2)"], 'it must be tuple[int, int]'),
    'negative count': (
        [TINY, '--config.train.batch=-8'],
        'train.batch is -8; it must be in [1, 1,000,000,000]',
    ),
    'never logged': ([TINY, '--config.train.log_every=0'], 'train.log_every is 0; it must be'),
    'not finite': (
        [TINY, '--config.optimizer.learning_rate=1e999'],
        'learning_rate is inf; it must be finite',
    ),
    'not a share': ([TINY, '--config.objective.drop=1.5'], 'objective.drop is 1.5; it must be in [0, 1)'),
    'too large': ([TINY, '--config.model.hidden=1000000000'], 'model.hidden is 1000000000; it must be in'),
    'unknown number format': ([TINY, '--config.model.dtype=int7'], "it must be one of 'float32'"),
    'unfitting heads': ([TINY, '--config.model.heads=3'], 'a width of 32 does not divide into 3 heads'),
    'unfitting patch': (
        [TINY, '--config.model.patch=5'],
        'an input of 32x32 does not divide into patches of 5',
    ),
    'unknown part': ([TINY, '--config.model.name=pixert'], 'There are: dit, flexvar, givt'),
    'unfitting parts': ([TINY, LABELS], "which conditioner 'labels' does not give"),
    'unfitting batch': ([TINY, '--config.train.batch=12'], 'train.batch is 12; it must be a multiple of 8'),
    'unfitting mesh': ([TINY, '--config.mesh.data=3'], 'does not fit 8 devices'),
    'mesh of another type': ([TINY, '--config.mesh.data=x'], "mesh axis 'data' has size 'x'"),
    'too small pictures': ([TINY, '--config.data.resolution=8'], 'resolution is 8; give a number of pixels'),
    'no other run': ([TINY, '--config.networks.model.init_from={here}/none'], 'there is no'),
    'no folder of pictures': ([PICTURES, '--config.data.path=none'], "no folder 'none'"),
    'a file for a folder': ([PICTURES, '--config.data.path={here}/prompts.txt'], 'there is no folder'),
    'no pictures': ([PICTURES, '--config.data.path={here}/void'], "has no picture for 'train'"),
    'broken pictures': (
        [PICTURES, '--config.data.path={here}/broken'],
        'are no readable pictures (a/0.png, a/1.png',
    ),
    'folder that cannot be read': ([PICTURES, '--config.data.path={here}/locked'], 'cannot be read'),
    'workdir below a file': ([TINY, '--workdir={here}/prompts.txt/run'], 'cannot be written to'),
    'no prompts file': ([*SAMPLE, '--prompts_file=none.txt'], 'no prompts file none.txt'),
    'no prompts file later': ([*BOTH, '--prompts_file=none.txt'], 'no prompts file none.txt'),
    'empty prompts file': ([*BOTH, '--prompts_file={here}/blank.txt'], 'blank.txt is empty'),
    'prompts that are no text': ([*BOTH, '--prompts_file={here}/picture.png'], 'cannot be read as text'),
    'folder of prompts': ([*BOTH, '--prompts_file={here}'], 'cannot be read as text'),
    'long prompt': ([*BOTH, '--prompt=' + 'red ' * 29], 'has 29 words, and this recipe reads 28'),
    'no class': ([CLASSES, '--mode=train,sample', '--prompt=cat'], "'cat' is no label"),
    'class that is not there': ([CLASSES, '--mode=train,sample', '--prompt=3'], 'class numbers, from 0 to 2'),
    'negative class': ([CLASSES, '--mode=train,sample', '--prompt=-1'], "'-1' is no label"),
    'no pictures wanted': ([*BOTH, '--count=0'], 'count is 0'),
    'far too many pictures': ([*BOTH, '--count=100000000'], 'one call draws at most 100,000'),
    'negative seed': ([*BOTH, '--seed=-1'], 'seeds lie in [0, 2**32)'),
    'unknown knob': ([*BOTH, '--knobs=step=2'], "has no knob 'step'"),
    'knob without a value': ([*BOTH, '--knobs=steps'], "--knobs has 'steps'; write it as name=number"),
    'no steps': ([*BOTH, '--knobs=steps=0'], 'steps is 0'),
    'knob that is no number': ([*BOTH, '--knobs=guidance=nan'], 'must be finite'),
    'width of one decay': ([*BOTH, '--ema=0.1'], "Train with config.ema.profile='power'"),
    'no width': ([*BOTH, '--config.ema.profile=power', '--ema=0.7'], 'width of an average is 0.7'),
    'no picture to start from': ([*BOTH, '--init=none.png', '--start=0.5'], 'none.png cannot be read'),
    'no picture at all': ([*BOTH, '--init={here}/prompts.txt', '--start=0.5'], 'prompts.txt cannot be read'),
    'nothing kept': ([*BOTH, '--init={here}/picture.png'], 'nothing of --init would be kept'),
    'too much noise': ([*BOTH, '--init={here}/picture.png', '--start=2'], 'start is 2.0'),
    'mask of nothing': ([*BOTH, '--mask={here}/picture.png'], 'give it as --init=picture.png'),
    'no metric': ([CLASSES, '--mode=train,evaluate'], "no section 'metric'"),
    'no run': (SAMPLE, 'there is no checkpoint directory'),
    'no run and no config': (['--mode=sample', '--workdir={here}/void'], 'void holds no run; give'),
    'no checkpoint': ([*SAMPLE, '--workdir={here}/stopped'], 'holds no checkpoint'),
    'no such checkpoint': (
        [*SAMPLE, '--workdir={here}/other', '--checkpoint=7'],
        'holds no step 7; it has [1]',
    ),
    'checkpoint of something else': (
        [*SAMPLE, '--workdir={here}/other'],
        '1 does not fit this run; missing (',
    ),
    'nothing to evaluate': ([TINY, '--mode=evaluate'], 'there is no checkpoint directory'),
}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A folder of what can be wrong."""
    here = tmp_path_factory.mktemp('files')
    (here / 'raises.py').write_text("VARIANTS = ('',)\n\n\ndef get_config(variant):\n    return 1 / 0\n")
    (here / 'empty.py').write_text('')
    (here / 'number.py').write_text('def get_config(variant):\n    return 3\n')
    (here / 'prompts.txt').write_text('a red circle\n')
    (here / 'blank.txt').write_text('\n \n')
    Image.new('RGB', (40, 32), 'red').save(here / 'picture.png')
    for name in ('void', 'broken/a', 'locked', 'stopped/checkpoints'):
        (here / name).mkdir(parents=True)
    for number in range(4):
        (here / f'broken/a/{number}.png').write_bytes(b'no picture')
    with Checkpoints(here / 'other/checkpoints') as checkpoints:
        checkpoints.save(1, {'params': {'critic': {'kernel': jnp.zeros((2, 2))}}}, {'config': {}})
    return here


@pytest.fixture
def program(monkeypatch, tmp_path, files, capsys, caplog):
    """`program(flags) -> (exit code, error lines, programs compiled)`: the command line, in this process."""
    monkeypatch.setattr(main.app, 'run', lambda function, argv, flags_parser: function(flags_parser(argv)))
    monkeypatch.setattr(main, '_enable_cache', lambda: None)
    monkeypatch.setenv('JAXGEN_DATA_DIR', str(tmp_path / 'data'))
    monkeypatch.delenv('JAXGEN_TRACEBACK', raising=False)
    monkeypatch.chdir(tmp_path)
    kind = type(epath.Path(files))
    openly = kind.iterdir

    def iterdir(path):  # root may read everything, so permissions would not show here
        if path.name == 'locked':
            raise PermissionError(13, 'Permission denied', str(path))
        return openly(path)

    monkeypatch.setattr(kind, 'iterdir', iterdir)
    log = logging.getLogger('jaxgen')
    before = log.propagate, log.handlers, log.level

    def call(flags):
        monkeypatch.setattr(sys, 'argv', ['jaxgen', *(flag.replace('{here}', str(files)) for flag in flags)])
        with compilations(caplog) as compiled:
            try:
                main.entry()
                code = 0
            except SystemExit as exit:
                code = exit.code
            return code, capsys.readouterr().err.splitlines(), compiled()

    yield call
    log.propagate, log.handlers = before[:2]
    log.setLevel(before[2])
    for name in main.FLAGS:
        main.FLAGS[name].unparse()


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes_are_one_line(mistake, program, tmp_path):
    flags, message = MISTAKES[mistake]
    code, lines, compiled = program(flags)
    assert code == 2, lines
    assert [line for line in lines if line.startswith('jaxgen:')] == lines[-1:], lines
    assert message in lines[-1]
    assert not compiled
    assert not (tmp_path / 'runs/quickstart_tiny/metrics.jsonl').exists()


def test_a_sound_call_compiles(program, tmp_path):
    code, lines, compiled = program([TINY, '--mode=plan', '--config.mesh.data=8'])
    assert code == 0 and compiled, lines
    assert (tmp_path / 'runs/quickstart_tiny/plan.json').exists()


def test_what_broke_is_one_line_too(program, monkeypatch):
    def breaks(recipe, workdir):
        raise OSError(28, 'No space left on device', 'somewhere')

    monkeypatch.setattr('jaxgen.jobs.plan.run', breaks)
    code, lines, _ = program([TINY, '--mode=plan'])
    assert code == 1 and lines == ["jaxgen: [Errno 28] No space left on device: 'somewhere'"]


def test_an_interrupt_is_one_line_too(program, monkeypatch):
    def stops(recipe, workdir):
        raise KeyboardInterrupt

    monkeypatch.setattr('jaxgen.jobs.plan.run', stops)
    code, lines, _ = program([TINY, '--mode=plan'])
    assert code == 130 and lines == ['jaxgen: interrupted.']


PROCESSES = {
    'unknown mode': ([TINY, '--mode=trian'], "there is no mode 'trian'; the nearest is 'train'"),
    'flag of another type': ([TINY, '--mode=sample', '--count=many'], 'flag --count=many'),
    'no prompts file later': ([*BOTH, '--prompts_file=none.txt'], 'no prompts file none.txt'),
    'unfitting patch': ([TINY, '--config.model.patch=5'], 'does not divide into patches of 5'),
}


@pytest.mark.parametrize('mistake', PROCESSES)
def test_mistakes_of_whole_processes(mistake, tmp_path):
    flags, message = PROCESSES[mistake]
    environment = os.environ | {'PYTHONPATH': str(FOLDER.parent), 'XLA_FLAGS': ''}
    environment.pop('JAXGEN_TRACEBACK', None)
    command = [sys.executable, '-m', 'jaxgen.main', f'--workdir={tmp_path / "run"}', *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert [line for line in lines if line.startswith('jaxgen:')] == lines[-1:], lines
    assert message in lines[-1] and 'Traceback' not in done.stderr
    assert not (tmp_path / 'run').exists()
