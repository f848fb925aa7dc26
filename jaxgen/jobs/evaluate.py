"""`--mode=evaluate`: draw pictures of the metric's prompts and judge them."""

import itertools
import logging
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from jaxgen import pictures
from jaxgen.generate import kept, labelled, make_generator
from jaxgen.jobs.sample import parse_knobs, sizes, with_earlier
from jaxgen.program import Program, assemble, check_params, load_params
from jaxgen.quantize import precision as precisions
from jaxgen.recipe import Recipe
from jaxgen.training.telemetry import write_json

log = logging.getLogger('jaxgen')
SHOWN = 64


def check(
    recipe: Recipe,
    workdir: str,
    seed: int = 0,
    knobs: str = '',
    checkpoint: int | None = None,
    ema: float | None = None,
    size: str = '',
    exact: bool = False,
    precision: str = precisions.EXACT,
    trained: bool = False,
) -> Program:
    """Refuse what `run` could not do, before anything is compiled. `trained`: a checkpoint is yet to come."""
    if recipe.metric is None:
        raise ValueError(
            "the config has no section 'metric' to evaluate by; add for example metric.name='alignment'."
        )
    if recipe.sampler is None:
        raise ValueError("the config has no section 'sampler'; there is nothing to draw and judge.")
    if not 0 <= seed < 2**31:
        raise ValueError(f'seed is {seed}; it must be in [0, 2**31).')
    recipe.sampler.knobs(**parse_knobs(knobs))
    asked, _ = sizes(recipe, size, exact)
    if asked and asked[0] != asked[1] and getattr(recipe.metric, 'square', False):
        raise ValueError(
            f"metric '{recipe.config['metric']['name']}' reads square pictures, not --size={size}."
        )
    precisions.check(precision)
    recipe.ema.check_chosen(ema)
    program = assemble(recipe)
    if not trained:
        check_params(program, workdir, checkpoint)
    return program


def run(
    recipe: Recipe,
    workdir: str,
    seed: int = 0,
    knobs: str = '',
    checkpoint: int | None = None,
    ema: float | None = None,
    size: str = '',
    exact: bool = False,
    precision: str = precisions.EXACT,
) -> dict[str, Any]:
    """Score the checkpoint's pictures; returns what `evaluate.json` holds of this call."""
    program = check(recipe, workdir, seed, knobs, checkpoint, ema, size, exact, precision)
    workdir, metric = epath.Path(workdir), recipe.metric
    settings = recipe.sampler.knobs(**parse_knobs(knobs))
    step, params = load_params(program, workdir, checkpoint, width=ema)
    params, examples = kept(recipe, params, precision), metric.examples()
    seeds = [seed + i for i in range(len(examples))]
    asked, drawn = sizes(recipe, size, exact)
    generate = make_generator(recipe, program.mesh, recipe.train.sample_batch, size=drawn, cut=asked)
    with tqdm(total=len(examples), desc='evaluate', unit='image') as bar:
        images = generate(params, examples, seeds, settings, progress=bar.update)
    values = metric.score(images, examples)
    record = {
        'metrics': values,
        'config': recipe.config,
        'checkpoint': step,
        'images': len(images),
        'seed': seed,
        'knobs': {name: float(value) for name, value in settings.items()},
        'ema': ema,
        'size': asked,
        'drawn': drawn,
        'precision': precision,
        'grid': _free_name(workdir),
    }
    if jax.process_index() == 0:
        labels, judge = labelled(recipe, examples[:SHOWN]), getattr(metric, 'judge', None)
        if judge is not None:
            labels['marks'] = [judge(image, example) for image, example in zip(images[:SHOWN], examples)]
        pictures.save(workdir / record['grid'], pictures.grid(images[:SHOWN], **labels))
        write_json(workdir / 'evaluate.json', with_earlier(workdir / 'evaluate.json', record))
        log.info('%s', ', '.join(f'{name} {value:.3f}' for name, value in values.items()))
    return record


def _free_name(workdir: epath.Path) -> str:
    """The grid's name: those of earlier calls stay."""
    names = itertools.chain(['evaluate.png'], (f'evaluate_{number}.png' for number in itertools.count(2)))
    return next(name for name in names if not (workdir / name).exists())
