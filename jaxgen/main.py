"""`python -m jaxgen.main --config=configs/quickstart.py --mode=train`: flags to jobs, nothing else.

Several modes run one after the other: `--mode=train,sample,evaluate`.
"""

import ast
import difflib
import importlib
import importlib.util
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

FLAGS = flags.FLAGS


flags.DEFINE_string(
    'config',
    '',
    'The recipe, for example configs/quickstart.py or configs/quickstart.py:tiny; '
    '--config.section.key=value overrides.',
)
flags.DEFINE_string('mode', 'train', 'A job, or several with commas between: train, sample, evaluate, plan.')
flags.DEFINE_string(
    'workdir', '', 'Where the run lives; local or gs://. Default: runs/ and the name of the config.'
)
flags.DEFINE_multi_string(
    'prompt', [], 'sample: what to draw; repeatable. A class number where the recipe has labels.'
)
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
        stray = [argument for argument in arguments[1:] if not argument.startswith('config.')]
        if stray:
            raise ValueError(f"'{stray[0]}' is no flag; flags begin with --.")
        overrides = [argument.removeprefix('config.') for argument in arguments[1:]]
        run(FLAGS.config, overrides, FLAGS.mode, FLAGS.workdir, {name: FLAGS[name] for name in OPTIONS})
    except ValueError as error:
        if os.environ.get('JAXGEN_TRACEBACK'):
            raise
        print(f'jaxgen: {error}', file=sys.stderr)
        sys.exit(2)


def run(path: str, overrides: Sequence[str], mode: str, workdir: str, options: dict[str, flags.Flag]) -> None:
    """Check the flags against the jobs asked for, then run them."""
    jobs = {name: _job(name) for name in mode.split(',')}
    takes = {name for job in jobs.values() for name in inspect.signature(job).parameters}
    for name, flag in options.items():
        if flag.present and name not in takes:
            raise ValueError(f'--{name} means nothing to --mode={mode}.')
    config = load_config(path, overrides)
    if FLAGS.compilation_cache:
        _enable_cache()
    from jaxgen import recipe

    built = recipe.build(config)
    folder = epath.Path(
        workdir or f'runs/{os.path.basename(path).replace(".py", "").replace(":", "_")}'
    ).expanduser()
    for name, job in jobs.items():
        logging.getLogger('jaxgen').info('%s in %s', name, folder)
        given = {key: flag.value for key, flag in options.items() if key in inspect.signature(job).parameters}
        job(built, str(folder), **given)


def load_config(argument: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The config of 'file.py' or 'file.py:variant', as given or as installed, with 'section.key=value' set.

    Any key that a part takes can be set, also one that the file leaves at its default.
    """
    if not argument:
        raise ValueError('--config is missing; for example --config=configs/quickstart.py.')
    path, _, variant = argument.partition(':')
    installed = os.path.join(os.path.dirname(__file__), 'configs', os.path.basename(path))
    file = path if os.path.isfile(path) else installed
    if not os.path.isfile(file):
        raise ValueError(f'there is no config file {path}.')
    spec = importlib.util.spec_from_file_location('jaxgen_config', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if variant not in module.VARIANTS:
        variants = ', '.join(f"'{name}'" for name in module.VARIANTS)
        raise ValueError(f"{path} has no variant '{variant}'; it has {variants}.")
    config = module.get_config(variant).to_dict()
    for override in overrides:
        keys, equals, text = override.partition('=')
        *parents, last = keys.split('.')
        if not equals:
            raise ValueError(f'--config.{override} has no value; write --config.{override}=value.')
        section = config
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ValueError(f'--config.{keys} does not exist: {parent} is {section!r}, no section.')
        section[last] = _literal(text)
    return config


def _literal(text: str) -> Any:
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _job(name: str) -> Any:
    import jaxgen.jobs

    names = [info.name for info in pkgutil.iter_modules(jaxgen.jobs.__path__)]
    if name not in names:
        nearest = difflib.get_close_matches(name, names, 1, 0)[0]
        raise ValueError(f"there is no mode '{name}'; the nearest is '{nearest}', of {', '.join(names)}.")
    return importlib.import_module(f'jaxgen.jobs.{name}').run


def _enable_cache() -> None:
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser('~/.cache/jaxgen/compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def _quiet() -> None:
    """Our own messages plainly, those of the libraries only where something fails."""
    if not FLAGS['verbosity'].present:
        absl_logging.set_verbosity(absl_logging.ERROR)
    log = logging.getLogger('jaxgen')
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [logging.StreamHandler(sys.stdout)]


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
        print(f'jaxgen: {error}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    entry()
