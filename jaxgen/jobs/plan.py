"""`--mode=plan`: what a run will cost before it runs: parameters, FLOPs, memory, traffic, time.

On the devices at hand the train steps are compiled for their memory. With `--topology=v5e:4x8` they and the
sampler are compiled for a TPU slice that is not there, with their real shardings, and jaxgen.estimate reads
in the compiler's schedule how long they take (`2*v5e:4x8` are two slices joined by a network). Without
libtpu it says the rest.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from jaxgen import estimate
from jaxgen import recipe as recipes
from jaxgen.estimate import topology as topologies
from jaxgen.generate import abstract_call, check_export, draw_step, keep_programs
from jaxgen.program import Program, assemble
from jaxgen.quantize import precision as precisions
from jaxgen.recipe import Recipe
from jaxgen.training import cost
from jaxgen.training.telemetry import write_json
from jaxgen.uncached import uncached

log = logging.getLogger('jaxgen')


def check(recipe: Recipe, export: str = '', topology: str = '', precision: str = precisions.EXACT) -> None:
    """Refuse what `run` could not do."""
    precisions.check(precision)
    assemble(recipe, _devices(topology))
    if export:
        if topology:
            raise ValueError('--export keeps programs of the devices at hand; give it without --topology.')
        check_export(recipe)


def run(
    recipe: Recipe,
    workdir: str,
    compile: str = 'all',
    export: str = '',
    topology: str = '',
    precision: str = precisions.EXACT,
) -> dict[str, Any]:
    """Plan the train step, and for a topology the sampler, from shapes alone; returns what `plan.json` holds.

    Into the folder `export` go the compiled programs that sample, if it is given. `precision` is what the
    sampled model is kept in, `compile` which programs ('all', 'train', 'sample', 'none').
    """
    program = assemble(recipe, _devices(topology))
    device = program.mesh.devices.flat[0]
    state = program.abstract
    networks = {**state.params, **program.abstract_frozen['networks']}
    held, averages = (state.params, program.abstract_beside), (state.ema, state.profiles)
    trees = {'parameters': held, 'optimizer': state.optimizer, 'ema': averages}
    record = {
        'config': recipe.config,
        'topology': topology,
        'libtpu': topologies.version() if device.platform == 'tpu' else None,
        'mesh': dict(program.mesh.shape),
        'devices': program.mesh.size,
        'device_kind': device.device_kind,
        'parameters': {name: cost.parameters(tree) for name, tree in networks.items()},
        'parameters_total': cost.parameters(networks),
        'bytes_per_device': {
            name: cost.bytes_per_device(tree, jax.tree.map(lambda leaf: leaf.sharding, tree))
            for name, tree in trees.items()
        },
    }
    if held := _held(program):
        record['bytes_per_device'] |= held
    compiled = compile != 'none' and not isinstance(device, topologies.Absent)
    if compiled and topology:
        with uncached():
            record |= _programs(program, True, precision, compile)
    else:
        record |= _programs(program, compiled, precision, compile)
    if jax.process_index() == 0:
        write_json(epath.Path(workdir) / 'plan.json', record)
        print(table(record))
        if topology and not record['libtpu']:
            print(f'Memory, time and traffic of the programs need the compiler: {topologies.INSTALL}.')
    for file in keep_programs(program, export, precision) if export else ():
        log.info('A program that draws is in %s.', file)
    return record


def _held(program: Program) -> dict[str, int]:
    """What a device keeps of a batch of samples from step to step, where the sampler says so."""
    sampler, batch = program.recipe.sampler, program.recipe.train.sample_batch
    if not hasattr(sampler, 'held'):
        return {}
    devices = program.mesh.shape['data'] * program.mesh.shape['fsdp']
    leaves = jax.tree.leaves(sampler.held(batch))
    return {'sampling cache': sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) // devices}


def _devices(topology: str) -> list[Any] | None:
    """The devices of a topology, stand-ins where there is no compiler for them; None without one."""
    return topologies.devices(topology, absent=topologies.version() is None) if topology else None


def _programs(program: Program, compiled: bool, precision: str, chosen: str) -> dict[str, Any]:
    """What each phase's step costs; on a TPU, or what stands for one, what a batch of samples does too."""
    recipe, arguments = program.recipe, program.abstract_arguments()
    bare = assemble(recipes.without_recomputing(recipe), list(program.mesh.devices.flat))
    record: dict[str, Any] = {'phases': {}}
    for phase in recipe.objective.phases if chosen != 'sample' else ():
        step, plain = program.steps[phase.name], bare.steps[phase.name]
        record['phases'][phase.name] = _program(
            program, step, plain, arguments, compiled, 1, _training_advice
        )
    if chosen != 'train' and recipe.sampler is not None and program.mesh.devices.flat[0].platform == 'tpu':
        batch, steps = recipe.train.sample_batch, int(recipe.sampler.knobs().get('steps', 1))
        call, plain = abstract_call(program, batch, precision=precision), draw_step(bare.recipe, bare.mesh)
        found = _program(
            program, draw_step(recipe, program.mesh), plain, call, compiled, steps, _sampling_advice
        )
        record['sample'] = {'images': batch, 'steps': steps, **found}
    return record


def _program(
    program: Program,
    function: Callable,
    plain: Callable,
    arguments: tuple,
    compiled: bool,
    turns: int,
    advice: Callable[[Program], list[str]],
) -> dict[str, Any]:
    """What one program costs; its loops of open length go round `turns` times."""
    with jax.set_mesh(program.mesh):
        flops = cost.count(plain, *arguments).turned(turns)
        record: dict[str, Any] = {'flops_per_step': flops}
        if not compiled:
            return record
        start = time.time()
        try:
            made = function.lower(*arguments).compile()
        except jax.errors.JaxRuntimeError as error:
            return record | _refused(error) | {'change': advice(program)}
    record['compile_seconds'] = time.time() - start
    memory = made.memory_analysis()
    record['bytes_per_device'] = {
        'arguments': memory.argument_size_in_bytes,
        'outputs': memory.output_size_in_bytes,
        'aliased': memory.alias_size_in_bytes,
        'temporary': memory.temp_size_in_bytes,
    }
    device = program.mesh.devices.flat[0]
    if device.platform == 'tpu':
        found = estimate.estimate(made, device.device_kind, flops / program.mesh.size, turns=turns)
        record['estimate'] = found.as_dict()
        if not found.fits:
            record['change'] = advice(program)
    return record


def _refused(error: Exception) -> dict[str, Any]:
    """What the compiler says of a program that is too large for the memory; any other failure is raised."""
    told = ' '.join(str(error).split())
    wordings = (
        r'Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm',
        r'required for [\w ]+ \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)',
    )
    found = next((found for wording in wordings if (found := re.search(wording, told))), None)
    if not found:
        raise error
    powers = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
    needed, unit, given, other = found.groups()
    return {'needs': float(needed) * powers[unit], 'hbm': float(given) * powers[other], 'fits': False}


def _training_advice(program: Program) -> list[str]:
    """What to change so that a step takes less memory."""
    recipe, mesh, found = program.recipe, program.mesh, []
    remat = recipe.config.get('model', {}).get('remat', 'none')
    if hasattr(getattr(recipe.networks.get('model'), 'module', None), 'remat') and remat != 'full':
        found.append(f'--config.model.remat={"full" if remat == "named" else "named"}')
    rows = recipe.train.batch // (mesh.shape['data'] * mesh.shape['fsdp'])
    if rows > recipe.train.accumulate:
        found.append(f'--config.train.accumulate={2 * recipe.train.accumulate}')
    if mesh.size > 1 and mesh.shape['fsdp'] == 1:
        found.append('--config.mesh.fsdp=-1 (parameters and optimizer split over the chips)')
    if rows <= 1 and mesh.shape['sequence'] == 1:
        found.append('--config.mesh.sequence=2 (each picture on several chips)')
    return found or ['a slice of more chips']


def _sampling_advice(program: Program) -> list[str]:
    """What to change so that drawing takes less memory."""
    recipe, mesh, found = program.recipe, program.mesh, []
    shards = mesh.shape['data'] * mesh.shape['fsdp']
    if recipe.train.sample_batch > shards:
        found.append(f'--config.train.sample_batch={max(shards, recipe.train.sample_batch // 2)}')
    if getattr(recipe.tokenizer, 'decoding', '') == 'whole':
        found.append('--config.tokenizer.decoding=tiled')
    if mesh.size > 1 and mesh.shape['fsdp'] == 1:
        found.append('--config.mesh.fsdp=-1')
    return found or ['a slice of more chips']


def table(record: Mapping[str, Any]) -> str:
    """The plan for people."""
    sections = record['config'].items()
    lines = [(name, ', '.join(f'{key}={value}' for key, value in keys.items())) for name, keys in sections]
    mesh = ' x '.join(f'{name} {size}' for name, size in record['mesh'].items() if size > 1) or 'one device'
    where = f' ({record["topology"]}, libtpu {record["libtpu"]})' if record['topology'] else ''
    lines += [('devices', f'{record["devices"]} {record["device_kind"]}, {mesh}{where}')]
    lines += [(f'parameters of {name}', cost.human(count)) for name, count in record['parameters'].items()]
    lines += [
        (f'{name} a device', cost.human(size) + 'B') for name, size in record['bytes_per_device'].items()
    ]
    for name, phase in record['phases'].items():
        lines += [(f'{name}: {what}', value) for what, value in _rows(phase)]
    if 'sample' in record:
        drawn = record['sample']
        lines.append(('sample', f'{drawn["images"]} images, {drawn["steps"]} steps'))
        lines += [(f'sample: {what}', value) for what, value in _rows(drawn)]
    width = max(len(name) for name, _ in lines)
    return '\n'.join(f'{name:{width}}  {value}' for name, value in lines)


def _rows(costs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """One program's costs as names and values."""
    rows = [('FLOPs a step' if 'images' not in costs else 'FLOPs', cost.human(costs['flops_per_step']))]
    if 'estimate' in costs:
        rows += estimate.lines(costs['estimate'])
        if 'images' in costs:
            rows.append(
                ('seconds an image', f'{costs["estimate"]["seconds"] / costs["images"]:.3g} (estimated)')
            )
    else:
        rows += [
            (f'{kind} a device', cost.human(size) + 'B')
            for kind, size in costs.get('bytes_per_device', {}).items()
        ]
    if 'needs' in costs:
        needed, given = (f'{costs[name] / 1e9:.1f}' for name in ('needs', 'hbm'))
        rows.append(('does not fit', f'needs {needed} of {given} GB a chip'))
    if 'change' in costs:
        rows.append(('to make it fit', ', or '.join(costs['change'])))
    if 'compile_seconds' in costs:
        rows.append(('compile', f'{costs["compile_seconds"]:.1f} s'))
    return rows
