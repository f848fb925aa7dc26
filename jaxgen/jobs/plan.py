"""`--mode=plan`: what a run will cost before it runs: parameters, FLOPs a step, memory a device."""

import time
from typing import Any

import jax
from etils import epath

from jaxgen.program import Program, assemble
from jaxgen.recipe import Recipe
from jaxgen.training import cost
from jaxgen.training.telemetry import write_json


def check(recipe: Recipe) -> None:
    """Refuse what `run` could not do."""
    assemble(recipe)


def run(recipe: Recipe, workdir: str, compile_step: bool = True) -> dict[str, Any]:
    """Plan the train step on the devices at hand, from shapes alone; returns what `plan.json` holds."""
    program = assemble(recipe)
    state, frozen = program.abstract, program.abstract_frozen
    networks = {**state.params, **frozen['networks']}
    averages = (state.ema, state.profiles)
    trees = {'parameters': networks, 'optimizer': state.optimizer, 'ema': averages}
    memory = {
        name: cost.bytes_per_device(tree, jax.tree.map(lambda leaf: leaf.sharding, tree))
        for name, tree in trees.items()
    }
    phases = {phase.name: _phase(program, phase.name, compile_step) for phase in recipe.objective.phases}
    record = {
        'config': recipe.config,
        'mesh': dict(program.mesh.shape),
        'devices': program.mesh.size,
        'device_kind': jax.devices()[0].device_kind,
        'parameters': {name: cost.parameters(tree) for name, tree in networks.items()},
        'parameters_total': cost.parameters(networks),
        'bytes_per_device': memory,
        'phases': phases,
    }
    if jax.process_index() == 0:
        write_json(epath.Path(workdir) / 'plan.json', record)
        print(table(record))
    return record


def _phase(program: Program, name: str, compile_step: bool) -> dict[str, Any]:
    arguments = program.abstract_arguments()
    with jax.set_mesh(program.mesh):
        flops = cost.flops(program.steps[name], *arguments)
        record: dict[str, Any] = {'flops_per_step': flops}
        if compile_step:
            start = time.time()
            compiled = program.steps[name].lower(*arguments).compile()
            record['compile_seconds'] = time.time() - start
            memory = compiled.memory_analysis()
            record['bytes_per_device'] = {
                'arguments': memory.argument_size_in_bytes,
                'outputs': memory.output_size_in_bytes,
                'aliased': memory.alias_size_in_bytes,
                'temporary': memory.temp_size_in_bytes,
            }
    return record


def table(record: dict[str, Any]) -> str:
    """The plan for people."""
    sections = record['config'].items()
    lines = [(name, ', '.join(f'{key}={value}' for key, value in keys.items())) for name, keys in sections]
    mesh = ' x '.join(f'{name} {size}' for name, size in record['mesh'].items() if size > 1) or 'one device'
    lines += [('devices', f'{record["devices"]} {record["device_kind"]}, {mesh}')]
    lines += [(f'parameters of {name}', cost.human(count)) for name, count in record['parameters'].items()]
    lines += [
        (f'{name} a device', cost.human(size) + 'B') for name, size in record['bytes_per_device'].items()
    ]
    for name, phase in record['phases'].items():
        lines.append((f'{name}: FLOPs a step', cost.human(phase['flops_per_step'])))
        lines += [
            (f'{name}: {kind} a device', cost.human(size) + 'B')
            for kind, size in phase.get('bytes_per_device', {}).items()
        ]
        if 'compile_seconds' in phase:
            lines.append((f'{name}: compile', f'{phase["compile_seconds"]:.1f} s'))
    width = max(len(name) for name, _ in lines)
    return '\n'.join(f'{name:{width}}  {value}' for name, value in lines)
