"""`python -m jaxgen.main --config=configs/quickstart.py --mode=train`: flags to jobs, nothing else.

Several modes run one after the other, `--mode=train,sample,evaluate`; all that was asked for is checked
before the first begins.
"""

import difflib
import functools
import importlib
import inspect
import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from etils import epath

from jaxgen import config as configs
from jaxgen.processes import current, place

FLAGS = flags.FLAGS


flags.DEFINE_string(
    'config',
    '',
    'The recipe, for example configs/quickstart.py or configs/quickstart.py:tiny; '
    '--config.section.key=value overrides.',
)
flags.DEFINE_string(
    'mode',
    'train',
    'A job, or several with commas between: train, sample, evaluate, plan, search, convert, cache, bench.',
)
flags.DEFINE_string(
    'weights',
    '',
    'Published weights to begin from: a folder as diffusers has them, a file of the model alone, '
    'hf://owner/name. They decide the architecture; without --config they decide the rest as well.',
)
flags.DEFINE_string(
    'export',
    '',
    'convert: the folder to write, as diffusers reads it. plan: the folder to keep the compiled sampling '
    'programs in, for this machine and user.',
)
flags.DEFINE_string(
    'executables',
    '',
    'sample: the folder that plan wrote to by --export; default executables/ of the workdir.',
)
flags.DEFINE_string(
    'workdir', '', 'Where the run lives; local or gs://. Default: runs/ and the name of the config.'
)
flags.DEFINE_multi_string(
    'prompt',
    [],
    'sample: what to draw; repeatable. A class number where the recipe has labels. Every call adds its '
    'pictures to samples/ and its record to sample.json; nothing is overwritten.',
)
flags.DEFINE_string('prompts_file', '', 'sample: a file with one prompt a line.')
flags.DEFINE_string('negative', '', 'sample: what guidance steers away from.')
flags.DEFINE_integer('count', 1, 'sample: pictures of each prompt.')
flags.DEFINE_integer('seed', 0, 'sample, evaluate: seed of the first picture.')
flags.DEFINE_string('knobs', '', "sample, evaluate, bench: the sampler's settings, as steps=20,guidance=3.")
flags.DEFINE_integer('checkpoint', None, 'sample, evaluate: the step to load; default the last.')
flags.DEFINE_string('init', '', 'sample: a picture to start from or to paint in.')
flags.DEFINE_string('mask', '', 'sample: white where --init is painted over, black where it stays.')
flags.DEFINE_float('start', None, 'sample: the share of the noise to begin with over --init; 1 is all of it.')
flags.DEFINE_string('size', '', 'sample, evaluate: HEIGHTxWIDTH in pixels; default the square of the recipe.')
flags.DEFINE_bool('exact', False, 'sample, evaluate: draw --size itself, not the nearest bucket, cut to it.')
flags.DEFINE_float('ema', None, 'sample, evaluate: the width of the average, where profiles were tracked.')
flags.DEFINE_string(
    'precision',
    'float32',
    "sample, evaluate, plan: what the model's parameters are kept in while it draws: float32, bfloat16 or "
    'int8.',
)
flags.DEFINE_enum(
    'compile',
    'all',
    ('all', 'train', 'sample', 'none'),
    'plan: the programs to compile; the others are left out.',
)
flags.DEFINE_string(
    'topology',
    '',
    'plan: a TPU slice that need not be there, as v5e:4x8, v5p:2x2x4 or 2*v6e:16x16: the train steps and the '
    'sampler are compiled for it, and what they take is estimated (needs libtpu).',
)
flags.DEFINE_integer('steps', 10, 'bench: how many train steps, and batches of pictures, are timed.')
flags.DEFINE_string(
    'coordinator',
    '',
    'One process of several: HOST:PORT of the first, which listens at the next port too. Found out by itself '
    'on TPU VMs, GKE and under Slurm; else by JAXGEN_COORDINATOR, JAXGEN_PROCESSES and JAXGEN_PROCESS.',
)
flags.DEFINE_integer('processes', None, 'How many processes there are; 1 is this one alone.')
flags.DEFINE_integer('process', None, 'Which of them this one is, from 0.')
flags.DEFINE_float('preflight_seconds', 60.0, 'How long processes wait for each other to come.', 0.0)
flags.DEFINE_bool('compilation_cache', True, 'Keep compiled programs on disk between runs.')

OPTIONS = (
    *('prompt', 'prompts_file', 'negative', 'count', 'seed', 'knobs', 'checkpoint', 'ema'),
    *('init', 'mask', 'start', 'compile', 'steps', 'size', 'exact', 'weights', 'export', 'executables'),
    *('topology', 'precision'),
)


def main(arguments: Sequence[str]) -> None:
    """Build the recipe and run its jobs; what a user can mend is one line and exit code 2, what broke 1."""
    _quiet()
    try:
        stray = [argument for argument in arguments[1:] if not argument.startswith('config.')]
        if stray:
            raise ValueError(f"'{stray[0]}' is no flag; flags begin with --.")
        overrides = [argument.removeprefix('config.') for argument in arguments[1:]]
        options = {name: FLAGS[name] for name in OPTIONS}
        _join(overrides, options)
        for name, folder, job in prepare(FLAGS.config, overrides, FLAGS.mode, FLAGS.workdir, options):
            logging.getLogger('jaxgen').info('%s in %s', name, folder)
            job()
    except KeyboardInterrupt:
        current.end('interrupted.', 130)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get('JAXGEN_TRACEBACK') and not current.several():
            raise
        current.end(str(error), 2 if isinstance(error, ValueError) else 1, error)
    except Exception as error:
        # XLA's own: a compiler's option that does not exist, memory that does not suffice.
        theirs = type(error).__name__ == 'JaxRuntimeError' and not os.environ.get('JAXGEN_TRACEBACK')
        if not (theirs or current.several()):
            raise
        current.end(f'{type(error).__name__}: {error}', 1, error)
    finally:
        current.leave()


def _join(overrides: Sequence[str], options: Mapping[str, flags.Flag]) -> None:
    """Be one of the run's processes where there are several; what was asked of all must be the same."""
    found = place.find(FLAGS.coordinator, FLAGS.processes, FLAGS.process, FLAGS.preflight_seconds)
    if found is None:
        return
    try:
        config = configs.load(FLAGS.config, overrides) if FLAGS.config else {'overrides': overrides}
    except ValueError as error:  # it will be raised again, when all are there to be told
        config = {'config': error}
    asked = {f'--{name}': flag.value for name, flag in options.items() if flag.present}
    asked |= {f'--{name}': FLAGS[name].value for name in ('config', 'mode', 'workdir')}
    current.join(found, asked | config, FLAGS.preflight_seconds)


def prepare(
    path: str, overrides: Sequence[str], mode: str, workdir: str, options: Mapping[str, flags.Flag]
) -> list[tuple[str, epath.Path, Callable[[], Any]]]:
    """The jobs asked for, ready to run: whatever a user can mend is refused here, and nothing is compiled."""
    jobs = {name: _job(name) for name in mode.split(',')}
    takes = {name for job in jobs.values() for name in inspect.signature(job.run).parameters}
    for name, flag in options.items():
        if flag.present and name not in takes and name != 'weights':
            raise ValueError(f'--{name} means nothing to --mode={mode}.')
    weights = options['weights'].value
    config = configs.load(path, overrides) if path else {}
    if FLAGS.compilation_cache:
        _enable_cache()
    from jaxgen import generate, pretrained, program, recipe

    if not (path or weights):
        if not (workdir and program.is_run(workdir)):
            lacking = f'{workdir} holds no run' if workdir else '--config is missing'
            raise ValueError(
                f'{lacking}; give for example --config=configs/quickstart.py, or published --weights=FOLDER.'
            )
        config = configs.overridden(generate.config_of(workdir), overrides)
    elif weights:
        config = pretrained.configured(config, weights, overrides)
    built = recipe.build(config)
    name = os.path.basename((path or weights).rstrip('/')).replace('.py', '').replace(':', '_')
    folder = epath.Path(workdir or f'runs/{name}').expanduser()
    given = {name: flag.value for name, flag in options.items()} | {'recipe': built, 'workdir': str(folder)}
    ready, trained = [], False
    for name, job in jobs.items():
        given['trained'] = trained
        order = _bound(job.check, given)() if hasattr(job, 'check') else None
        ready.append((name, folder, _bound(job.run, {**given, 'order': order})))
        trained |= name == 'train'
    _check_writable(folder)
    current.agree_on_folder(folder)
    return ready


def _bound(function: Callable, given: Mapping[str, Any]) -> Callable[[], Any]:
    """The function with what it takes of what is given."""
    takes = inspect.signature(function).parameters
    return functools.partial(function, **{name: value for name, value in given.items() if name in takes})


def _check_writable(folder: epath.Path) -> None:
    """Refuse a workdir that cannot be made or written to; a bucket says so by itself."""
    if '://' in str(folder):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f'.writable.{os.getpid()}'
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f'the workdir {folder} cannot be written to ({error.strerror}); give another --workdir.'
        ) from error


def _job(name: str) -> Any:
    import jaxgen.jobs

    names = [info.name for info in pkgutil.iter_modules(jaxgen.jobs.__path__)]
    if name not in names:
        nearest = difflib.get_close_matches(name, names, 1, 0)[0]
        raise ValueError(f"there is no mode '{name}'; the nearest is '{nearest}', of {', '.join(names)}.")
    return importlib.import_module(f'jaxgen.jobs.{name}')


def _enable_cache() -> None:
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser('~/.cache/jaxgen/compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def _quiet() -> None:
    """Our own messages plainly; what the libraries log as errors is raised as well, and told by us."""
    if not FLAGS['verbosity'].present:
        absl_logging.set_verbosity(absl_logging.FATAL)
    log = logging.getLogger('jaxgen')
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [logging.StreamHandler(sys.stdout)]
    sys.unraisablehook = _unraisable


def _unraisable(event: Any) -> None:
    """Where reads or writes fail together, orbax raises the first; the others then find nobody to tell."""
    late = 'Event loop is closed' in str(event.exc_value)
    if not late and '_read_array_index_and_device_put' not in repr(event.object):
        sys.__unraisablehook__(event)


def entry() -> None:
    """The command line."""
    # absl knows only flags it was told of: overrides travel as plain arguments.
    overrides = [argument.lstrip('-') for argument in sys.argv[1:] if argument.startswith('--config.')]
    others = [argument for argument in sys.argv[1:] if not argument.startswith('--config.')]
    app.run(main, [sys.argv[0], *others, *overrides], flags_parser=_parse)


def _parse(arguments: Sequence[str]) -> list[str]:
    try:
        return FLAGS(arguments)
    except flags.Error as error:
        current.end(str(error), 2)


if __name__ == '__main__':
    entry()
