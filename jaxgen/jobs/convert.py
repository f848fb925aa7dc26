"""`--mode=convert`: published weights to a run of ours, and a run or published weights to a published folder.

`--weights=DIR --workdir=RUN` writes a run: its checkpoint 0 holds every network in the dtypes that were
published, and other runs can begin from it. `--export=DIR` writes the folder that diffusers'
`from_pretrained` reads: from the run in the workdir, or from `--weights`, such as an author's file. Beside
either lies `convert.json`: where the tensors came from, what was left out, and the hashes of the files.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from jaxgen.program import Program, assemble, check_params, check_published, is_run, load_params
from jaxgen.recipe import Recipe
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.telemetry import write_json
from jaxgen.weights import files, pipelines, published

log = logging.getLogger('jaxgen')
RECORD, TOKENS = 'convert.json', 'tokenizer'


def check(
    recipe: Recipe,
    workdir: str,
    weights: str = '',
    export: str = '',
    checkpoint: int | None = None,
    trained: bool = False,
) -> Program:
    """Refuse what `run` could not do, before anything is read. `trained`: a checkpoint is yet to come."""
    program = assemble(recipe)
    if not weights and not export:
        raise ValueError(
            '--mode=convert needs --weights=DIR, to make a run of them, or --export=DIR, to publish the run.'
        )
    if export:
        _check_target(epath.Path(export).expanduser())
        pipelines.check(recipe.config, recipe.networks)
    if not weights and not trained:
        check_params(program, workdir, checkpoint)
    if weights and checkpoint is not None:
        raise ValueError('--checkpoint is of a run; published weights have none.')
    if weights and not trained:
        check_published(program)
        if not export and is_run(workdir):
            with Checkpoints(epath.Path(workdir) / 'checkpoints', read_only=True) as checkpoints:
                if checkpoints.steps():  # else what an interrupted call left, to be replaced
                    raise ValueError(f'{workdir} holds a run already; give another --workdir.')
    return program


def run(
    recipe: Recipe,
    workdir: str,
    weights: str = '',
    export: str = '',
    checkpoint: int | None = None,
    trained: bool = False,
) -> dict[str, Any]:
    """Convert; returns what `convert.json` holds, in the first process."""
    program = check(recipe, workdir, weights, export, checkpoint, trained)
    if jax.process_count() > 1:  # one that is late would find what another has begun to write
        multihost_utils.sync_global_devices('jaxgen/checked')
    from_weights = bool(weights) and not trained
    reports = {}
    if from_weights:
        for name in program.recipe.networks:
            source = recipe.networks[name].init_from
            reports[name] = published.report(recipe.networks[name].module, source, program.layout(name))
            log.info('%s', reports[name])

    def load(names: Sequence[str]) -> Mapping[str, Any]:
        if from_weights:
            return program.loaded(names, as_stored=True)
        return load_params(program, workdir, checkpoint, tuple(names), as_stored=True)[1]

    target = epath.Path(export or workdir).expanduser()
    (publish if export else _adopt)(recipe, load, target)
    record = {'config': recipe.config, 'weights': weights, 'reports': reports}
    if jax.process_index() == 0:
        for name in recipe.networks if export else ():
            written = str(target / pipelines.FOLDERS[name])
            log.info('%s', published.report(recipe.networks[name].module, written, program.layout(name)))
        record['files'] = files.manifest(str(target))
        write_json(target / RECORD, record)
        log.info('%d files in %s, their hashes in %s.', len(record['files']), target, target / RECORD)
    return record


def _check_target(folder: epath.Path) -> None:
    """Refuse a folder to export to that is there, or that cannot be made."""
    if folder.exists():
        raise ValueError(f'{folder} is there already; give --export a folder that is not.')
    above = next(each for each in folder.absolute().parents if each.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(f'{folder} cannot be made in {above}; give another --export.')


def publish(recipe: Recipe, load: Callable[[Sequence[str]], Mapping[str, Any]], folder: str) -> None:
    """Write the folder of a published pipeline, one network after the other; whole, or not at all.

    load: the parameters of the networks of these names.
    """
    if 'text' in recipe.networks and not recipe.conditioner.nothing:
        log.warning(
            'What the model learned for no caption is left out: published pipelines read the empty caption '
            'instead. Train with conditioner.empty_null=true for them.'
        )
    with published.writing(os.fspath(folder)) as unfinished:
        if jax.process_index() == 0:
            pipelines.write_rest(epath.Path(unfinished), recipe.config, recipe.networks, recipe.conditioner)
        for name, network in recipe.networks.items():
            params = load((name,))[name]
            published.save_network(str(unfinished / pipelines.FOLDERS[name]), network.module, params)
            del params  # before the next ones are there


def _adopt(recipe: Recipe, load: Callable[[Sequence[str]], Mapping[str, Any]], workdir: epath.Path) -> None:
    """A run whose checkpoint 0 holds all networks; its config names no source but itself."""
    config = {**recipe.config, 'networks': {}}
    for name, section in recipe.config.get('networks', {}).items():
        config['networks'][name] = {key: value for key, value in section.items() if key != 'init_from'}
    if config['conditioner'].get('tokens'):
        if jax.process_index() == 0:
            recipe.conditioner.vocabulary.save(workdir / TOKENS)
        config['conditioner'] = {**config['conditioner'], 'tokens': str(workdir / TOKENS)}
    with Checkpoints(workdir / 'checkpoints', asynchronous=False, lean=True) as checkpoints:
        checkpoints.save(0, {'params': load(list(recipe.networks))}, {'config': config, 'converted': True})
