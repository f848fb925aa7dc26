"""`--mode=search`: find something offline with a trained run, and keep it as an artifact in its workdir."""

import logging
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from jaxgen import artifact
from jaxgen.jobs.sample import parse_knobs
from jaxgen.layers.stack import canonical
from jaxgen.program import Program, assemble, check_params, load_params
from jaxgen.recipe import Recipe
from jaxgen.training.digest import fingerprint

log = logging.getLogger('jaxgen')


def check(
    recipe: Recipe,
    workdir: str,
    knobs: str = '',
    checkpoint: int | None = None,
    ema: float | None = None,
    trained: bool = False,
) -> Program:
    """Refuse what `run` could not do, before anything is compiled. `trained`: a checkpoint is yet to come."""
    if recipe.search is None:
        raise ValueError(
            "the config has no section 'search'; name what to look for, as --config.search.name=pairs."
        )
    if recipe.sampler is None:
        raise ValueError("the config has no section 'sampler', which a search draws with.")
    recipe.sampler.knobs(**parse_knobs(knobs))
    recipe.ema.check_chosen(ema)
    recipe.search.found_for(recipe)  # opens the data
    program = assemble(recipe)
    if not trained:
        check_params(program, workdir, checkpoint)
    return program


def run(
    recipe: Recipe, workdir: str, knobs: str = '', checkpoint: int | None = None, ema: float | None = None
) -> dict[str, Any]:
    """Run the recipe's search to its end; returns what was found for what, and where it lies.

    A stopped search goes on, a complete one is left as it is, and that of other networks is not overwritten.
    """
    program, search = check(recipe, workdir, knobs, checkpoint, ema), recipe.search
    settings = recipe.sampler.knobs(**parse_knobs(knobs))
    step, params = load_params(program, workdir, checkpoint, width=ema)
    networks = {name: canonical(tree) for name, tree in params.items()}  # whatever their stacks' cut
    found_for = {**search.found_for(recipe), 'networks': artifact.networks(networks, fingerprint)}
    notes = {
        'checkpoint': step,
        'ema': ema,
        'settings': recipe.config['search'],
        'sampler': recipe.config['sampler'],
        'knobs': {name: float(value) for name, value in settings.items()},
    }
    folder = epath.Path(workdir) / search.kind

    def parts(first: int) -> Iterator[Any]:
        return search.parts(program, params, settings, first)

    artifact.write(folder, search.kind, found_for, parts, notes, writes=jax.process_index() == 0)
    log.info('%s in %s.', search.kind, folder)
    return {'folder': str(folder), 'found_for': found_for, 'notes': notes}
