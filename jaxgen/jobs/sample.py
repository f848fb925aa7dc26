"""`--mode=sample`: prompts to pictures. PNGs, one grid with captions, and a record of how they were made.

Every call adds to what is in the workdir: pictures are numbered on, the grid gets a name of its own, and
sample.json keeps the records of earlier calls.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from jaxgen import images as files
from jaxgen import pictures
from jaxgen.executables import FOLDER
from jaxgen.features import NAME as TEXT
from jaxgen.features import Features, ahead
from jaxgen.generate import Canvas, drawn_size, kept, labelled, make_generator
from jaxgen.program import Program, assemble, check_params, check_published, is_run, load_params, origin
from jaxgen.quantize import precision as precisions
from jaxgen.recipe import Recipe
from jaxgen.training.telemetry import write_json

log = logging.getLogger('jaxgen')
GRID = 64
MOST = 100_000  # pictures of one call: they are held in memory


@dataclasses.dataclass(frozen=True)
class Order:
    """A call of the job, found to be sound."""

    program: Program
    examples: Sequence[Mapping[str, Any]]
    negative: Mapping[str, Any] | None
    knobs: Mapping[str, jax.Array]
    canvas: Canvas | None
    size: tuple[int, int] | None
    drawn: tuple[int, int] | None
    precision: str


def check(
    recipe: Recipe,
    workdir: str,
    prompt: Sequence[str] = (),
    prompts_file: str = '',
    negative: str = '',
    count: int = 1,
    seed: int = 0,
    knobs: str = '',
    checkpoint: int | None = None,
    ema: float | None = None,
    init: str = '',
    mask: str = '',
    start: float | None = None,
    size: str = '',
    exact: bool = False,
    weights: str = '',
    precision: str = precisions.EXACT,
    trained: bool = False,
    executables: str = '',
) -> Order:
    """Refuse what `run` could not do, before anything is compiled. `trained`: a checkpoint is yet to come."""
    if recipe.sampler is None:
        raise ValueError("the config has no section 'sampler'; this recipe trains without drawing anything.")
    if count < 1:
        raise ValueError(f'count is {count}; draw at least one picture of each prompt.')
    examples = [recipe.conditioner.example(text) for text in _prompts(prompt, prompts_file)]
    if weights and not (examples or trained):
        _check_own(recipe)
    if not 0 <= seed < 2**32 or max(1, len(examples)) * count > min(MOST, 2**32 - seed):
        raise ValueError(
            f'{count} pictures of {len(examples)} prompts with seeds from {seed}; seeds lie in [0, 2**32), '
            f'and one call draws at most {MOST:,} pictures.'
        )
    settings = recipe.sampler.knobs(**parse_knobs(knobs))
    precisions.check(precision)
    if executables and not epath.Path(executables).expanduser().is_dir():
        raise ValueError(
            f'there is no folder {executables}; --executables is what --mode=plan wrote to by --export.'
        )
    recipe.ema.check_chosen(ema)
    against = recipe.conditioner.example(negative) if negative else None
    asked, drawn = sizes(recipe, size, exact)
    canvas = _canvas(drawn or (recipe.config['data']['resolution'],) * 2, init, mask, start)
    program = assemble(recipe)
    if weights and not trained:
        if is_run(workdir):
            raise ValueError(
                f'{workdir} holds a run, and --weights asks for others; leave --weights out to draw from the '
                'run, or give another --workdir.'
            )
        if checkpoint is not None or ema is not None:
            raise ValueError('--checkpoint and --ema are of a run; published weights have neither.')
        check_published(program)
    elif not trained:
        check_params(program, workdir, checkpoint)
    return Order(program, examples, against, settings, canvas, asked, drawn, precision)


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
    ema: float | None = None,
    init: str = '',
    mask: str = '',
    start: float | None = None,
    size: str = '',
    exact: bool = False,
    weights: str = '',
    precision: str = precisions.EXACT,
    trained: bool = False,
    executables: str = '',
    order: Order | None = None,
) -> dict[str, Any]:
    """Draw `count` pictures of each prompt (or label); returns what `sample.json` holds of this call.

    Without prompts, the metric's first ones are drawn, or the held-out split's. Image i of prompt j has
    seed `seed + j * count + i`, whatever it is batched with. Networks come from the workdir's checkpoint, or
    from published weights where those are given and nothing was trained from them before. `executables` is
    the folder to look for compiled programs in, if not the workdir's own; `order` is what `check` found.
    """
    published = weights and not trained
    order = order or check(
        recipe,
        workdir,
        prompt,
        prompts_file,
        negative,
        count,
        seed,
        knobs,
        checkpoint,
        ema,
        init,
        mask,
        start,
        size,
        exact,
        weights,
        precision,
        trained,
        executables,
    )
    workdir, program = epath.Path(workdir), order.program
    examples = [example for example in order.examples or _own(recipe) for _ in range(count)]
    seeds = [seed + i for i in range(len(examples))]
    against = order.negative or recipe.conditioner.nothing
    negatives = [against] * len(examples) if against else None
    captions = [recipe.conditioner.describe(example) for example in examples]

    def load(names: Sequence[str]) -> tuple[int | None, Mapping[str, Any]]:
        if published:
            return None, program.loaded(names)
        return load_params(program, workdir, checkpoint, tuple(names), ema)

    weights_of_text = origin(program, TEXT, '' if published else workdir, checkpoint) if ahead(recipe) else ''
    programs = executables or str(workdir / FOLDER)
    step, images = _drawn(order, load, weights_of_text, examples, negatives, seeds, programs)
    first = _next_number(workdir / 'samples')
    record = {
        'config': recipe.config,
        'checkpoint': step,
        'prompts': captions,
        'negative': negative,
        'seeds': seeds,
        'knobs': {name: float(value) for name, value in order.knobs.items()},
        'ema': ema,
        'init': init,
        'mask': mask,
        'start': start,
        'size': order.size,
        'drawn': order.drawn,
        'weights': weights if published else '',
        'precision': precision,
        'files': [f'samples/{first + i:05d}.png' for i in range(len(images))],
        'grid': f'samples/grid_{first:05d}.png' if first else 'samples/grid.png',
    }
    if jax.process_index() == 0:
        for file, image in zip(record['files'], images):
            pictures.save(workdir / file, image)
        labels = labelled(recipe, examples[:GRID])
        pictures.save(workdir / record['grid'], pictures.grid(images[:GRID], **labels))
        write_json(workdir / 'sample.json', with_earlier(workdir / 'sample.json', record))
        log.info(
            '%d pictures in %s, together in %s.', len(images), workdir / 'samples', workdir / record['grid']
        )
    return record


def _drawn(
    order: Order,
    load: Callable[[Sequence[str]], tuple[int | None, Mapping[str, Any]]],
    weights_of_text: str,
    examples: Sequence[Mapping[str, Any]],
    negatives: Sequence[Mapping[str, Any]] | None,
    seeds: Sequence[int],
    programs: str,
) -> tuple[int | None, np.ndarray]:
    """The step of the run that `load` read, and the pictures; a frozen text encoder is gone by then."""
    program, recipe = order.program, order.program.recipe
    names = list(recipe.networks)
    if ahead(recipe):
        names.remove(TEXT)
        read = Features(program, lambda names: load(names)[1], weights_of_text)
        examples, negatives = read(examples, negatives)
    step, params = load(names)
    params = kept(recipe, params, order.precision)
    batch = recipe.train.sample_batch
    generate = make_generator(
        recipe, program.mesh, batch, size=order.drawn, cut=order.size, programs=programs
    )
    with tqdm(total=len(examples), desc='sample', unit='image') as bar:
        return step, generate(params, examples, seeds, order.knobs, negatives, bar.update, order.canvas)


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


def with_earlier(path: epath.Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with those of earlier calls, newest first, where the file at `path` holds such."""
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):  # there is none, or it is no record
        return dict(record)
    earlier = before.pop('earlier', [])
    if before.get('config') == json.loads(json.dumps(record['config'])):
        del before['config']  # said once
    return {**record, 'earlier': [before, *earlier]}


def _prompts(prompt: Sequence[str], prompts_file: str) -> list[str]:
    if not prompts_file:
        return list(prompt)
    path = epath.Path(prompts_file).expanduser()
    if not path.exists():
        raise ValueError(f'there is no prompts file {prompts_file}.')
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'the prompts file {prompts_file} cannot be read as text: {error}.') from None
    if not lines:
        raise ValueError(f'the prompts file {prompts_file} is empty; write one prompt a line.')
    return [*prompt, *lines]


def _own(recipe: Recipe) -> list[dict[str, Any]]:
    """What is drawn where nothing is asked for."""
    if recipe.metric:
        return recipe.metric.examples()[:16]
    source = recipe.source('held_out')
    return [source[i] for i in range(min(16, len(source)))]


def _check_own(recipe: Recipe) -> None:
    """Refuse a recipe that has nothing of its own to draw: published weights come without data."""
    try:
        _own(recipe)
    except ValueError as error:
        raise ValueError(f'nothing is asked for; give --prompt or --prompts_file ({error}).') from None


def sizes(recipe: Recipe, text: str, exact: bool) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """What --size, 'HEIGHTxWIDTH' or one number for both, asks for, and what is drawn for it."""
    if not text:
        if exact:
            raise ValueError('--exact is of a size; give it as --size=HEIGHTxWIDTH.')
        return None, None
    sides = text.lower().split('x')
    if len(sides) > 2 or not all(side.isdecimal() and 0 < int(side) <= 2**14 for side in sides):
        raise ValueError(f"--size is '{text}'; write HEIGHTxWIDTH in pixels, as --size=1344x768.")
    asked = int(sides[0]), int(sides[-1])
    return asked, drawn_size(recipe, asked, exact)


def _canvas(size: tuple[int, int], init: str, mask: str, start: float | None) -> Canvas | None:
    """The picture to start from, cut to what is drawn."""
    if not init and (mask or start is not None):
        raise ValueError('--mask and --start are of a picture to start from; give it as --init=picture.png.')
    if not init:
        return None
    if start is not None and not 0 < start <= 1:
        raise ValueError(f'start is {start}; it is the share of the noise to begin with, in (0, 1].')
    if not mask and start in (None, 1):
        raise ValueError('nothing of --init would be kept; give --mask, or --start below 1.')
    image = files.read(init, size)
    painted = None if not mask else files.read(mask, size).mean(-1) > 127
    return Canvas(image, painted, np.float32(1 if start is None else start))


def _next_number(folder: epath.Path) -> int:
    """One more than the greatest number that a picture of the folder has."""
    names = [path.stem for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) + 1 for name in names if name.isdecimal()), default=0)
