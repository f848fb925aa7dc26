"""The programs of a recipe on a mesh: its state, where that lies, and the jitted step of each phase."""

import dataclasses
import functools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxgen import keys as random
from jaxgen.config import known_keys
from jaxgen.layers.stack import canonical
from jaxgen.objectives import Phase
from jaxgen.recipe import Recipe, call
from jaxgen.training import compiler, ema, guard, optimizer, sharding, snapshots, zero
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.diagnosis import why
from jaxgen.training.digest import total
from jaxgen.training.record import compare_tokenizers
from jaxgen.training.state import TrainState, kept_in
from jaxgen.training.step import example_keys, make_held_out, make_step
from jaxgen.training.trainable import Trainable, merged, part
from jaxgen.weights import files, hub, published

GROUPS = ('ema', 'params')


@dataclasses.dataclass(frozen=True)
class Program:
    """A recipe, its mesh, and an optimizer with its schedule for each phase."""

    recipe: Recipe
    mesh: Mesh
    optimizers: Mapping[str, Any]
    schedules: Mapping[str, Callable]

    @functools.cached_property
    def _shapes(self) -> tuple[TrainState, dict[str, Any]]:
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(self._around, self.recipe.shapes, key)

    @functools.cached_property
    def abstract(self) -> TrainState:
        """The state's shapes and dtypes, each with its sharding."""
        return zero.placed(self._shapes[0], self.recipe.rules, self.mesh)

    @functools.cached_property
    def abstract_frozen(self) -> dict[str, Any]:
        """The same for the networks that no phase trains."""
        return sharding.placed(self._shapes[1], self.recipe.rules, self.mesh)

    @property
    def abstract_beside(self) -> dict[str, Any]:
        """What of them the steps are called with: not those whose work is cached."""
        networks = self.abstract_frozen['networks']
        return {'networks': {name: networks[name] for name in networks if name not in self.recipe.spared}}

    def fresh(self) -> TrainState:
        """A new state, drawn where it belongs; `init_from` is loaded over it."""
        state = self._draw(lambda key: self._fresh(key)[0], self.abstract)
        loaded = self.loaded(self._with_source(state.params))

        def averages(trees: Mapping[str, Any]) -> dict[str, Any]:
            return {name: ema.init(loaded[name]) if name in loaded else tree for name, tree in trees.items()}

        state = state.replace(
            params={**state.params, **loaded},
            ema=averages(state.ema),
            profiles={label: averages(trees) for label, trees in state.profiles.items()},
        )
        return jax.device_put(state, self._where)

    def frozen(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """The networks that no phase trains (of these names), as `init_from` or the seed gives them."""
        every = self.abstract_frozen['networks']
        wanted = {name: tree for name, tree in every.items() if names is None or name in names}
        sourced = self._with_source(wanted)
        blank = {name: tree for name, tree in wanted.items() if name not in sourced}

        def draw(key: jax.Array) -> dict[str, Any]:
            return {name: self._fresh(key)[1]['networks'][name] for name in blank}

        drawn = self._draw(draw, blank) if blank else {}
        return {'networks': {**drawn, **self.loaded(sourced)}}

    def _draw(self, function: Callable[[jax.Array], Any], abstract: Any) -> Any:
        where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        with jax.set_mesh(self.mesh):
            return jax.jit(function, out_shardings=where)(jax.random.key(self.recipe.train.seed))

    def _with_source(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self.recipe.networks[name].init_from]

    def loaded(self, names: Iterable[str], as_stored: bool = False) -> dict[str, Any]:
        """Parameters of networks from where their `init_from` says: published weights, or another run.

        `as_stored` keeps the dtypes they have there.
        """
        networks = {}
        for name in names:
            module, source = self.recipe.networks[name].module, self.recipe.networks[name].init_from
            if is_run(source):
                networks[name] = load_params(self, source, names=(name,), as_stored=as_stored)[1][name]
            else:
                networks[name] = published.load(module, source, self.layout(name), as_stored)
        return networks

    def layout(self, name: str) -> Any:
        """The shapes, dtypes and shardings of a network's parameters."""
        return {**self.abstract.params, **self.abstract_frozen['networks']}[name]

    def _fresh(self, key: jax.Array) -> tuple[TrainState, dict[str, Any]]:
        return self._around(self.recipe.init(random.fold(key, 'init')), key)

    def _around(self, params: dict[str, Any], key: jax.Array) -> tuple[TrainState, dict[str, Any]]:
        trained = {name: params[name] for name in self.recipe.trained}
        states = {
            phase.name: self.optimizers[phase.name].init(part(trained, self._trains(phase)))
            for phase in self.recipe.objective.phases
        }

        def averages() -> dict[str, Any]:
            return {name: ema.init(params[name]) for name in self.recipe.averaged}

        inner = self.recipe.objective.init(random.fold(key, 'objective'))
        profiles = {label: averages() for label in self.recipe.ema.further}
        progress = guard.init(states, self.recipe.averaged)
        state = TrainState(trained, states, averages(), inner, profiles, progress)
        frozen = {
            name: kept_in(self.recipe.networks[name].dtype, tree)
            for name, tree in params.items()
            if name not in trained
        }
        return state, {'networks': frozen}

    @functools.cached_property
    def steps(self) -> dict[str, Callable]:
        """The jitted step of each phase; it takes over the state's memory."""
        told = compiler.options(self.mesh, self.recipe.train.compiler)
        where = {'donate_argnums': 0, 'out_shardings': (self._where, None)}
        return {
            phase.name: jax.jit(self._step(phase), compiler_options=told, **where)
            for phase in self.recipe.objective.phases
        }

    def _trains(self, phase: Phase) -> dict[str, Trainable]:
        """What of which networks a phase trains."""
        networks = self.recipe.networks
        return {name: networks[name].trainable for name in phase.trains if name in self.recipe.trained}

    def _step(self, phase: Phase) -> Callable:
        recipe, where = self.recipe, (self.recipe.rules, self.mesh)
        step = make_step(
            phase,
            self._trains(phase),
            zero.spread_updates(self.optimizers[phase.name], *where),
            recipe.averaged,
            recipe.ema,
            recipe.guard,
            recipe.train.accumulate,
        )
        return zero.spread_step(step, *where)

    @functools.cached_property
    def held_out(self) -> Callable:
        """The jitted loss on held-out examples."""
        objective = self.recipe.objective
        loss = make_held_out(objective.held_out or objective.phases[0].loss)
        return jax.jit(loss, compiler_options=compiler.options(self.mesh))

    def diagnose(
        self, phase: str, state: TrainState, frozen: Mapping, batch: Mapping, key: Any, number: Any
    ) -> str:
        """Why the guard let no step of a phase pass: what is the first in it that is not finite."""
        chosen = next(one for one in self.recipe.objective.phases if one.name == phase)
        count = len(jax.tree.leaves(batch)[0])
        keys = example_keys(key, number + state.progress['data_offset'], phase, count)
        names = {type(net.module).__name__: name for name, net in self.recipe.networks.items()}

        def loss(trained: Mapping, params: Mapping, inner: Any, frozen: Mapping, batch: Mapping) -> Any:
            total, weight, _, _ = chosen.loss(merged(params, trained), inner, frozen, batch, keys, number)
            return total / weight

        own = {**frozen, 'ema': state.ema}
        trained = part(state.params, self._trains(chosen))
        return why(loss, trained, (state.params, state.state, own, batch), names)

    @functools.cached_property
    def _where(self) -> Any:
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def abstract_arguments(self) -> tuple:
        """The shapes of what every step is called with."""
        batch = self.abstract_batch(self.recipe.blank())
        key = jax.eval_shape(lambda: jax.random.key(0))
        return self.abstract, self.abstract_beside, batch, key, jax.ShapeDtypeStruct((), np.int32)

    def trace(self) -> None:
        """Trace every step from shapes alone: what does not fit is said before anything is compiled."""
        with jax.set_mesh(self.mesh):
            for step in self.steps.values():
                step.trace(*self.abstract_arguments())

    def abstract_batch(self, example: Mapping[str, Any]) -> Any:
        """The shapes of a training batch made of such examples."""
        latents = np.zeros(self.recipe.tokenizer.latent, np.float32)
        known = {'latents': latents, 'noise': latents, **example}
        arrays = {name: known[name][None] for name in self.recipe.objective.reads}
        arrays |= self.recipe.conditioner.arrays([example])
        rows = sharding.batch_sharding(self.mesh)
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((self.recipe.train.batch, *a.shape[1:]), a.dtype, sharding=rows),
            arrays,
        )


def assemble(recipe: Recipe, devices: Any = None) -> Program:
    """The program of a recipe on the devices at hand."""
    mesh = sharding.make_mesh(recipe.config.get('mesh', {'data': -1}), devices)
    train = recipe.train
    sharding.check_batch('train.batch', train.batch, mesh, train.accumulate)
    sharding.check_batch('train.sample_batch', train.sample_batch, mesh)
    optimizers, schedules = {}, {}
    common = dict(recipe.config['optimizer'])
    by_phase = common.pop('phases', {})
    known_keys(by_phase, [phase.name for phase in recipe.objective.phases], 'section optimizer.phases')
    for phase in recipe.objective.phases:
        if phase.settle and train.accumulate > 1:
            raise ValueError(
                f"what '{phase.name}' learns without gradients is of whole batches: set train.accumulate=1."
            )
        settings = {**common, **by_phase.get(phase.name, {})}
        built = call(optimizer.build, settings, {'steps': phase.before(train.steps)}, 'optimizer')
        optimizers[phase.name], schedules[phase.name] = built
    program = Program(recipe, mesh, optimizers, schedules)
    sharding.check_used(mesh, (program.abstract.params, program.abstract_frozen), recipe.init)
    return program


def load_params(
    program: Program,
    workdir: str,
    step: int | None = None,
    names: tuple[str, ...] = (),
    width: float | None = None,
    as_stored: bool = False,
) -> tuple[int, dict]:
    """The step of a run and the parameters of networks (none named: all that sampling uses).

    Averages where there are; `width` asks for averages of another width than the one that was tracked for
    sampling. What the run does not hold of all networks (its frozen ones) comes from where the recipe says.
    `as_stored` keeps the dtypes of the checkpoint. Without a step it is the last that is not damaged.
    """
    folder = epath.Path(workdir) / 'checkpoints'
    with Checkpoints(folder, read_only=True) as checkpoints:
        wanted = _wanted(program, checkpoints, step, names, as_stored)
        if not wanted:
            step, stored = checkpoints.last_record(step)[0], {}
        elif step is None:
            step, stored = checkpoints.restore_last(wanted, partial=True)
        else:
            stored = checkpoints.restore(step, wanted, partial=True)
    if width is not None and 'ema' in wanted:
        folder = epath.Path(workdir) / 'snapshots'
        average = program.recipe.ema
        stored['ema'] = snapshots.reconstruct(folder, average, wanted['ema'], step, width)
    found = {**stored.get('ema', {}), **stored.get('params', {})}
    elsewhere = _elsewhere(program, workdir, names, found)
    return step, {**program.frozen(elsewhere)['networks'], **found}


def check_params(
    program: Program, workdir: str, step: int | None = None, names: tuple[str, ...] = ()
) -> None:
    """Refuse a workdir whose checkpoint has not what `load_params` would read; nothing is read yet."""
    with Checkpoints(epath.Path(workdir) / 'checkpoints', read_only=True) as checkpoints:
        wanted = _wanted(program, checkpoints, step, names)
        checkpoints.check(step, wanted, partial=True)
        config = checkpoints.last_record(step)[1]['metadata'].get('config', {})
    held = {name for trees in wanted.values() for name in trees}
    elsewhere = _elsewhere(program, workdir, names, held)
    for name in elsewhere:
        ours = program.recipe.networks[name].init_from
        theirs = config.get('networks', {}).get(name, {}).get('init_from', '')
        if ours != theirs and not (name == 'tokenizer' and _encode_alike(program, ours, theirs)):
            raise ValueError(
                f"{workdir} was trained with the network '{name}' from {theirs or 'its seed'}, and this "
                f'recipe has it from {ours or "its seed"}; give the same --weights, or the same '
                f'networks.{name}.init_from.'
            )
    if 'tokenizer' in names:
        compare_tokenizers(program.recipe, config, workdir)
    check_sources(program, elsewhere)


def _elsewhere(program: Program, workdir: str, names: tuple[str, ...], held: Container[str]) -> list[str]:
    """The networks that a run's checkpoint does not hold."""
    missing = [name for name in names or program.recipe.networks if name not in held]
    for name in missing:
        if program.recipe.networks[name].init_from == str(workdir):
            raise ValueError(f"{workdir} does not hold the network '{name}', which it is to come from.")
    return missing


def origin(program: Program, name: str, workdir: str = '', step: int | None = None) -> str:
    """What tells a network's parameters from any others, without reading them; '' if drawn from a seed.

    They are those that `load_params` takes from a run, or without one those that `init_from` says.
    """
    if workdir and (found := _digests(name, workdir, step)):
        return total(found)
    source = program.recipe.networks[name].init_from
    if not source or is_run(source):
        return origin(program, name, source) if source else ''
    return ' '.join(map(files.fingerprint, files.several(source)))


def _digests(name: str, workdir: str, step: int | None = None) -> dict[str, str]:
    """Of each leaf of a network, as `load_params` takes them from a run; none where it does not hold it."""
    with Checkpoints(epath.Path(workdir) / 'checkpoints', read_only=True) as checkpoints:
        leaves = checkpoints.last_record(step)[1]['leaves']
    groups = [[leaf for leaf in leaves if leaf.startswith(f'{group}/{name}/')] for group in GROUPS]
    return {leaf.partition('/')[2]: leaves[leaf][2] for leaf in next(filter(None, groups), ())}


def _encode_alike(program: Program, one: str, other: str) -> bool:
    """Whether the tokenizers of two runs differ at most in what only decodes."""
    if not (is_run(one) and is_run(other)):
        return False
    only = tuple(f'tokenizer/{part}/' for part in getattr(program.recipe.tokenizer, 'decodes', ()))
    unlike = _digests('tokenizer', one).items() ^ _digests('tokenizer', other).items()
    return all(leaf.startswith(only) for leaf, _ in unlike)


def is_run(source: str | epath.PathLike) -> bool:
    """Whether a source of parameters is the workdir of a run; else it is published weights."""
    if '#' in str(source) or str(source).startswith(hub.SCHEME):  # asked, epath would go to the network
        return False
    return (epath.Path(source).expanduser() / 'checkpoints').is_dir()


def check_sources(program: Program, names: Iterable[str] | None = None) -> None:
    """Refuse networks (of these names) that have not what they would be read from; no array is read yet."""
    for name, network in program.recipe.networks.items():
        if not network.init_from or (names is not None and name not in names):
            continue
        if is_run(network.init_from):
            check_params(program, network.init_from, names=(name,))
        else:
            published.check(network.module, network.init_from, program.layout(name))


def check_published(program: Program) -> None:
    """Refuse a recipe of published weights where some network has none, or not what it needs."""
    bare = [name for name, network in program.recipe.networks.items() if not network.init_from]
    if bare:
        raise ValueError(
            f"--weights says nothing of the network '{bare[0]}', which would be random; give a folder that "
            f'holds it as well, or where it is, --config.networks.{bare[0]}.init_from=PATH.'
        )
    check_sources(program)


def _wanted(
    program: Program,
    checkpoints: Checkpoints,
    step: int | None,
    names: tuple[str, ...],
    as_stored: bool = False,
) -> dict[str, Any]:
    """What of a checkpoint makes up networks, by group: their averages where it has them.

    It must have those that this recipe trains.
    """
    leaves = checkpoints.last_record(step)[1]['leaves']
    held = {
        group: {leaf.split('/')[1] for leaf in leaves if leaf.startswith(group + '/')} for group in GROUPS
    }
    wanted: dict[str, Any] = {group: {} for group in GROUPS}
    for name in names or program.recipe.networks:
        group = 'ema' if name in held['ema'] else 'params'
        if name in held[group] or name in program.abstract.params:
            wanted[group][name] = program.layout(name)

    def stored(path: tuple, like: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        dtype = leaves.get(sharding.path_string(path), (like.dtype,))[0]
        return jax.ShapeDtypeStruct(like.shape, dtype, sharding=like.sharding)

    if as_stored:
        wanted = jax.tree_util.tree_map_with_path(stored, canonical(wanted))
    return {group: trees for group, trees in wanted.items() if trees}


def sampling_params(program: Program, state: TrainState, frozen: Mapping) -> dict[str, Any]:
    """The parameters that sampling uses in the middle of a run."""
    places = {name: jax.tree.map(lambda leaf: leaf.sharding, program.layout(name)) for name in state.ema}
    return {**frozen['networks'], **state.params, **jax.device_put(state.ema, places)}
