"""`python -m jaxgen.main --config=configs/quickstart.py --mode=train`: flags to jobs, nothing else.

Several modes run one after the other: `--mode=train,sample,evaluate`.
"""

import difflib
import importlib
import inspect
import logging
import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from etils import epath
from ml_collections import config_flags

FLAGS = flags.FLAGS


def _config_path(argument: str) -> str:
    """A config's path as given, or among those that were installed with the package."""
    path, colon, variant = argument.partition(':')
    installed = os.path.join(os.path.dirname(__file__), 'configs', os.path.basename(path))
    if not os.path.exists(path) and os.path.exists(installed):
        path = installed
    return path + colon + variant


config_flags.DEFINE_config_file('config', None, 'The recipe, for example configs/quickstart.py or '
                                'configs/quickstart.py:tiny; --config.section.key=value overrides.')
flags.DEFINE_string('mode', 'train', 'A job, or several with commas between: train, sample, evaluate, plan.')
flags.DEFINE_string('workdir', '', 'Where the run lives; local or gs://. Default: runs/ and the name of the config.')
flags.DEFINE_multi_string('prompt', [], 'sample: what to draw; repeatable. A class number where the recipe has labels.')
flags.DEFINE_string('prompts_file', '', 'sample: a file with one prompt a line.')
flags.DEFINE_string('negative', '', 'sample: what guidance steers away from.')
flags.DEFINE_integer('count', 1, 'sample: pictures of each prompt.')
flags.DEFINE_integer('seed', 0, 'sample, evaluate: seed of the first picture.')
flags.DEFINE_string('knobs', '', "sample, evaluate: the sampler's settings, as steps=20,guidance=3.")
flags.DEFINE_integer('checkpoint', None, 'sample, evaluate: the step to load; default the last.')
flags.DEFINE_bool('compile_step', True, 'plan: compile the step for its memory.')
flags.DEFINE_bool('compilation_cache', True, 'Keep compiled programs on disk between runs.')

OPTIONS = ('prompt', 'prompts_file', 'negative', 'count', 'seed', 'knobs', 'checkpoint', 'compile_step')


def main(arguments: Sequence[str]) -> None:
    """Build the recipe and run its jobs; what a user can mend is one line and exit code 2."""
    _quiet()
    try:
        if len(arguments) > 1:
            raise ValueError(f"'{arguments[1]}' is no flag; flags begin with --.")
        run(FLAGS.config, FLAGS.mode, FLAGS.workdir, {name: FLAGS[name] for name in OPTIONS})
    except ValueError as error:
        if os.environ.get('JAXGEN_TRACEBACK'):
            raise
        print(f'jaxgen: {error}', file=sys.stderr)
        sys.exit(2)


def run(config: Any, mode: str, workdir: str, options: dict[str, flags.Flag]) -> None:
    """Check the flags against the jobs asked for, then run them."""
    if config is None:
        raise ValueError('--config is missing; for example --config=configs/quickstart.py.')
    jobs = {name: _job(name) for name in mode.split(',')}
    takes = {name for job in jobs.values() for name in inspect.signature(job).parameters}
    for name, flag in options.items():
        if flag.present and name not in takes:
            raise ValueError(f'--{name} means nothing to --mode={mode}.')
    if FLAGS.compilation_cache:
        _enable_cache()
    from jaxgen import recipe

    built = recipe.build(config)
    folder = epath.Path(workdir or f'runs/{_config_name()}')
    folder.mkdir(parents=True, exist_ok=True)
    for name, job in jobs.items():
        logging.getLogger('jaxgen').info('%s in %s', name, folder)
        given = {key: flag.value for key, flag in options.items() if key in inspect.signature(job).parameters}
        job(built, str(folder), **given)


def _job(name: str) -> Any:
    import jaxgen.jobs

    names = [info.name for info in pkgutil.iter_modules(jaxgen.jobs.__path__)]
    if name not in names:
        nearest = difflib.get_close_matches(name, names, 1, 0)[0]
        raise ValueError(f"there is no mode '{name}'; the nearest is '{nearest}', of {', '.join(names)}.")
    return importlib.import_module(f'jaxgen.jobs.{name}').run


def _config_name() -> str:
    path, _, variant = FLAGS['config'].config_filename.partition(':')
    name = os.path.splitext(os.path.basename(path))[0]
    return f'{name}_{variant}' if variant else name


def _enable_cache() -> None:
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser('~/.cache/jaxgen/compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def _quiet() -> None:
    """Our own messages plainly, those of the libraries from warnings on."""
    if not FLAGS['verbosity'].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
    log = logging.getLogger('jaxgen')
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [logging.StreamHandler()]


def entry() -> None:
    """The command line."""
    sys.argv = [_with_config_path(argument) for argument in sys.argv]
    app.run(main)


def _with_config_path(argument: str) -> str:
    name, equals, value = argument.partition('=')
    return f'--config={_config_path(value)}' if name.lstrip('-') == 'config' and equals else argument


if __name__ == '__main__':
    entry()
