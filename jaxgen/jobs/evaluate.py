"""`--mode=evaluate`: draw pictures of the metric's prompts and judge them."""

import logging
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from jaxgen import pictures
from jaxgen.generate import make_generator
from jaxgen.jobs.sample import latest_step, parse_knobs
from jaxgen.program import assemble, load_params
from jaxgen.recipe import Recipe
from jaxgen.training.telemetry import write_json

log = logging.getLogger('jaxgen')
SHOWN = 64


def run(
    recipe: Recipe, workdir: str, seed: int = 0, knobs: str = '', checkpoint: int | None = None
) -> dict[str, Any]:
    """Score the checkpoint's pictures; returns what `evaluate.json` holds."""
    if recipe.metric is None:
        raise ValueError(
            "the config has no section 'metric' to evaluate by; add for example metric.name='alignment'."
        )
    if recipe.sampler is None:
        raise ValueError("the config has no section 'sampler'; there is nothing to draw and judge.")
    workdir, metric = epath.Path(workdir), recipe.metric
    settings = recipe.sampler.knobs(**parse_knobs(knobs))
    program, step = assemble(recipe), latest_step(workdir, checkpoint)
    params = load_params(program, workdir, step)
    examples = metric.examples()
    seeds = [seed + i for i in range(len(examples))]
    generate = make_generator(recipe, program.mesh, recipe.train.sample_batch)
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
        'grid': 'evaluate.png',
    }
    if jax.process_index() == 0:
        captions = [recipe.conditioner.describe(example) for example in examples[:SHOWN]]
        marks = [metric.judge(image, example) for image, example in zip(images[:SHOWN], examples)]
        pictures.save(workdir / record['grid'], pictures.grid(images[:SHOWN], captions, marks=marks))
        write_json(workdir / 'evaluate.json', record)
        log.info('%s', ', '.join(f'{name} {value:.3f}' for name, value in values.items()))
    return record
