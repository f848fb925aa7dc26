"""`--mode=bench`: how fast a recipe is here: compiling, the first step, steady steps, sampling, reading data.

Steps and pictures run on arrays drawn on the devices, so that no data set and no weights are needed; the data
are read by themselves, where they are there. A step is timed until its results are. Operations are those of
the matrix products of the network without rematerialisation, as model FLOPs are quoted.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
from etils import epath

from jaxgen import recipe as recipes
from jaxgen.data.pipeline import batches
from jaxgen.estimate import chips
from jaxgen.generate import abstract_call, draw_step
from jaxgen.jobs.sample import parse_knobs
from jaxgen.program import Program, assemble, sampling_params
from jaxgen.recipe import Recipe
from jaxgen.training import cost, sharding
from jaxgen.training.state import TrainState
from jaxgen.training.step import number
from jaxgen.training.telemetry import write_json
from jaxgen.uncached import uncached

READING = 2.0  # seconds of reading for each number of threads


def check(recipe: Recipe, steps: int = 10, knobs: str = '') -> None:
    """Refuse what `run` could not do."""
    if steps < 1:
        raise ValueError(f'--steps={steps}; time at least one step.')
    if knobs and recipe.sampler is None:
        raise ValueError("--knobs are of a sampler, and the config has no section 'sampler'.")
    if recipe.sampler:
        recipe.sampler.knobs(**parse_knobs(knobs))
    assemble(recipe)


def run(recipe: Recipe, workdir: str, steps: int = 10, knobs: str = '') -> dict[str, Any]:
    """Time `steps` steps of each phase, as many batches of pictures, and the reading of data.

    Returns what `bench.json` holds.
    """
    program = assemble(recipe)
    state, beside = program.fresh(), program.frozen(tuple(program.abstract_beside['networks']))
    phases = {}
    for phase in recipe.objective.phases:
        state, phases[phase.name] = _train(program, phase.name, state, beside, steps)
    record = {
        'config': recipe.config,
        'versions': {'jax': jax.__version__, 'jaxlib': jaxlib.__version__},
        'device_kind': jax.devices()[0].device_kind,
        'devices': program.mesh.size,
        'processes': jax.process_count(),
        'cores': os.cpu_count(),
        'mesh': dict(program.mesh.shape),
        'train': phases,
        'sample': _sample(program, state, steps, parse_knobs(knobs)) if recipe.sampler else None,
        'data': _data(program),
    }
    if jax.process_index() == 0:
        write_json(epath.Path(workdir) / 'bench.json', record)
        print(table(record))
    return record


def _train(
    program: Program, phase: str, state: TrainState, beside: Mapping, count: int
) -> tuple[TrainState, dict[str, Any]]:
    """A phase's step: the state after `count` of them, and their times."""
    arguments = program.abstract_arguments()
    compiled, record = _compiled(program, program.steps[phase], arguments)
    batch, key = _drawn(arguments[2]), jax.random.key(program.recipe.train.seed)

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, beside, batch, key, number(0))
        return state, metrics

    record |= _times(step, count, 'step') | {'images': program.recipe.train.batch}
    plain = assemble(recipes.without_recomputing(program.recipe), devices=program.mesh.devices.flatten())
    flops = cost.flops(plain.steps[phase], *plain.abstract_arguments())
    return state, record | _rates(program, record['step_seconds'], record['images'], flops)


def _sample(program: Program, state: TrainState, count: int, knobs: Mapping[str, float]) -> dict[str, Any]:
    """A batch of pictures, their text read ahead."""
    recipe, images = program.recipe, program.recipe.train.sample_batch
    arguments = abstract_call(program, images)
    compiled, record = _compiled(program, draw_step(recipe, program.mesh), arguments)
    frozen = program.frozen([name for name in arguments[0] if name not in state.params])
    params = sampling_params(program, state, frozen)
    settings = recipe.sampler.knobs(**knobs)
    given = [{name: params[name] for name in arguments[0]}, *map(_drawn, arguments[1:5]), settings, None]
    record |= _times(lambda: compiled(*given), count, 'batch')
    record |= {'images': images, 'knobs': {name: float(value) for name, value in settings.items()}}
    whole, latents = (
        cost.flops(draw, *arguments)
        for draw in (draw_step(recipe, program.mesh), draw_step(recipe, program.mesh, finish=_latents))
    )
    steps = record['knobs'].get('steps')  # the loop's body is counted once
    flops = whole + (int(steps) - 1) * latents if steps else None
    return record | _rates(program, record['batch_seconds'], images, flops)


def _latents(params: Any, request: Any, latents: Any) -> Any:
    return latents


def _data(program: Program) -> dict[str, Any]:
    """Examples a second that this process reads, by threads; why not, where the data are not there."""
    recipe, train = program.recipe, program.recipe.train
    try:
        source = recipe.source('train')
    except ValueError as error:
        return {'missing': str(error)}
    rows = sharding.local_rows(program.mesh, train.batch)
    rates = {}
    for threads in sorted({0, 1, train.threads, os.cpu_count() or 1}):
        stream = batches(
            source,
            recipe.conditioner.arrays,
            seed=train.seed,
            batch=train.batch,
            rows=rows,
            flip=train.flip,
            threads=threads,
        )
        next(stream)
        start, read = time.perf_counter(), 0
        while time.perf_counter() - start < READING:
            next(stream)
            read += len(rows)
        rates[str(threads)] = read / (time.perf_counter() - start)
    return {'examples_per_second_by_threads': rates}


def _compiled(program: Program, function: Any, arguments: tuple) -> tuple[Any, dict[str, Any]]:
    """A jitted function compiled, with the seconds that took; nothing comes from the cache on disk."""
    with jax.set_mesh(program.mesh), uncached():
        start = time.perf_counter()
        lowered = function.lower(*arguments)
        middle = time.perf_counter()
        compiled = lowered.compile()
    return compiled, {'lower_seconds': middle - start, 'compile_seconds': time.perf_counter() - middle}


def _drawn(abstract: Any) -> Any:
    """Arrays of these shapes where they belong: noise, zeros for what is counted, True for what is asked."""

    def draw(key: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(like.dtype, jnp.floating):
            return jax.random.normal(key, like.shape, like.dtype)
        return jnp.full(like.shape, like.dtype == bool, like.dtype)

    leaves, structure = jax.tree.flatten(abstract)

    def fill() -> Any:
        keys = jax.random.split(jax.random.key(0), len(leaves))
        return structure.unflatten(list(map(draw, keys, leaves)))

    return jax.jit(fill, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))()


def _times(call: Callable[[], Any], count: int, name: str) -> dict[str, Any]:
    """Seconds of the first call, and of `count` further ones."""
    seconds = []
    for _ in range(count + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    first, *steady = seconds
    found = {'median': statistics.median(steady), 'least': min(steady), 'most': max(steady)}
    return {f'first_{name}_seconds': first, f'{name}_seconds': found}


def _rates(
    program: Program, seconds: Mapping[str, float], images: int, flops: float | None
) -> dict[str, float]:
    """What the median time comes to; the share of the devices' peak where that is known."""
    median, patch = seconds['median'], getattr(_module(program), 'patch', None)
    rates = {'images_per_second': images / median}
    if patch:
        rows, columns = program.recipe.tokenizer.latent[:2]
        rates['tokens_per_second'] = images * (rows // patch) * (columns // patch) / median
    if flops:
        rates |= {'flops': flops, 'flops_per_second': flops / median}
        kind = jax.devices()[0].device_kind
        if kind in chips.KINDS:
            rates['mfu'] = flops / median / (program.mesh.size * chips.chip(kind).peak)
    return rates


def _module(program: Program) -> Any:
    model = program.recipe.networks.get('model')
    return model.module if model else None


def table(record: Mapping[str, Any]) -> str:
    """The times for people."""
    mesh = ' x '.join(f'{name} {size}' for name, size in record['mesh'].items() if size > 1) or 'one device'
    place = f'{record["devices"]} {record["device_kind"]}, {mesh}, {record["cores"]} cores of this host'
    lines = [('devices', place), ('jax, jaxlib', ', '.join(record['versions'].values()))]
    for name, phase in record['train'].items():
        lines += _lines(name, phase, 'step')
    if record['sample']:
        knobs = ', '.join(f'{name}={value:g}' for name, value in record['sample']['knobs'].items())
        lines += [('sample: knobs', knobs), *_lines('sample', record['sample'], 'batch')]
    data = record['data']
    lines += [
        (f'data: {threads} threads', f'{cost.human(rate)} examples/s')
        for threads, rate in data.get('examples_per_second_by_threads', {}).items()
    ]
    lines += [('data', data['missing'])] if 'missing' in data else []
    width = max(len(name) for name, _ in lines)
    return '\n'.join(f'{name:{width}}  {value}' for name, value in lines)


def _lines(name: str, times: Mapping[str, Any], unit: str) -> list[tuple[str, str]]:
    steady = times[f'{unit}_seconds']
    rates = [f'{cost.human(times["images_per_second"])} images/s']
    rates += [f'{cost.human(times["tokens_per_second"])} tokens/s'] if 'tokens_per_second' in times else []
    rates += [f'{cost.human(times["flops_per_second"])}FLOP/s'] if 'flops' in times else []
    rates += [f'MFU {times["mfu"]:.3f}'] if 'mfu' in times else []
    return [
        (f'{name}: lower, compile', f'{times["lower_seconds"]:.1f} s, {times["compile_seconds"]:.1f} s'),
        (f'{name}: first {unit}', f'{times[f"first_{unit}_seconds"]:.4f} s'),
        (
            f'{name}: {unit} of {times["images"]}',
            f'{steady["median"]:.4f} s ({steady["least"]:.4f} to {steady["most"]:.4f})',
        ),
        (f'{name}: rates', ', '.join(rates)),
    ]
