"""`--mode=sample`: prompts to pictures. PNGs, one grid with captions, and a record of how they were made."""

import logging
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from jaxgen import pictures
from jaxgen.generate import make_generator
from jaxgen.program import assemble, load_params
from jaxgen.recipe import Recipe
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.telemetry import write_json

log = logging.getLogger('jaxgen')
GRID = 64


def run(
    recipe: Recipe,
    workdir: str,
    prompt: Sequence[str] = (),
    prompts_file: str = '',
    negative: str = '',
    count: int = 1,
    seed: int = 0,
    knobs: str = '',
    checkpoint: int | None = None,
) -> dict[str, Any]:
    """Draw `count` pictures of each prompt (or label); returns what `sample.json` holds.

    Without prompts, the metric's first ones are drawn, or the held-out split's. Image i of prompt j has
    seed `seed + j * count + i`, whatever it is batched with.
    """
    if recipe.sampler is None:
        raise ValueError("the config has no section 'sampler'; this recipe trains without drawing anything.")
    workdir, examples = epath.Path(workdir), _examples(recipe, prompt, prompts_file)
    settings = recipe.sampler.knobs(**parse_knobs(knobs))
    if count < 1:
        raise ValueError(f'count is {count}; draw at least one picture of each prompt.')
    program, step = assemble(recipe), latest_step(workdir, checkpoint)
    params = load_params(program, workdir, step)
    examples = [example for example in examples for _ in range(count)]
    seeds = [seed + i for i in range(len(examples))]
    negatives = [recipe.conditioner.example(negative)] * len(examples) if negative else None
    generate = make_generator(recipe, program.mesh, recipe.train.sample_batch)
    with tqdm(total=len(examples), desc='sample', unit='image') as bar:
        images = generate(params, examples, seeds, settings, negatives, bar.update)
    captions = [recipe.conditioner.describe(example) for example in examples]
    files = [f'samples/{i:05d}.png' for i in range(len(images))]
    record = {
        'config': recipe.config,
        'checkpoint': step,
        'prompts': captions,
        'negative': negative,
        'seeds': seeds,
        'knobs': {name: float(value) for name, value in settings.items()},
        'files': files,
        'grid': 'samples/grid.png',
    }
    if jax.process_index() == 0:
        for file, image in zip(files, images):
            pictures.save(workdir / file, image)
        pictures.save(workdir / record['grid'], pictures.grid(images[:GRID], captions[:GRID]))
        write_json(workdir / 'sample.json', record)
        log.info(
            '%d pictures in %s, together in %s.', len(files), workdir / 'samples', workdir / record['grid']
        )
    return record


def latest_step(workdir: epath.Path, checkpoint: int | None) -> int:
    """The step asked for, or the last there is."""
    with Checkpoints(workdir / 'checkpoints', read_only=True) as checkpoints:
        steps = checkpoints.steps()
    if not steps:
        raise ValueError(f'{workdir} holds no checkpoint; train there first, or give another --workdir.')
    if checkpoint is not None and checkpoint not in steps:
        raise ValueError(f'{workdir} has no checkpoint {checkpoint}; it has {", ".join(map(str, steps))}.')
    return steps[-1] if checkpoint is None else checkpoint


def parse_knobs(text: str) -> dict[str, float]:
    """'steps=20,guidance=3' as a dictionary of numbers."""
    knobs = {}
    for item in filter(None, text.split(',')):
        name, equals, value = item.partition('=')
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"--knobs has '{item}'; write it as name=number,name=number.") from None
        knobs[name.strip()] = int(number) if number.is_integer() else number
    return knobs


def _examples(recipe: Recipe, prompt: Sequence[str], prompts_file: str) -> list[dict[str, Any]]:
    prompts = list(prompt)
    if prompts_file:
        path = epath.Path(prompts_file)
        if not path.exists():
            raise ValueError(f'there is no prompts file {prompts_file}.')
        prompts += [line for line in path.read_text().splitlines() if line.strip()]
        if not prompts:
            raise ValueError(f'the prompts file {prompts_file} is empty; write one prompt a line.')
    if prompts:
        examples = [recipe.conditioner.example(text) for text in prompts]
    elif recipe.metric:
        examples = recipe.metric.examples()[:16]
    else:
        source = recipe.source('held_out')
        examples = [source[i] for i in range(min(16, len(source)))]
    return examples
