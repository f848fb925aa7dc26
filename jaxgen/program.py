"""The programs of a recipe on a mesh: its state, where that lies, and the jitted step of each phase."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding

from jaxgen import keys as random
from jaxgen.config import known_keys
from jaxgen.objectives import Phase, every_step
from jaxgen.recipe import Recipe, blank_example, call
from jaxgen.training import ema, guard, optimizer, sharding, snapshots
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.diagnosis import why
from jaxgen.training.state import TrainState
from jaxgen.training.step import example_keys, make_held_out, make_step
from jaxgen.training.trainable import Trainable, merged, part


@dataclasses.dataclass(frozen=True)
class Program:
    """A recipe, its mesh, and an optimizer with its schedule for each phase."""

    recipe: Recipe
    mesh: Mesh
    optimizers: Mapping[str, Any]
    schedules: Mapping[str, Callable]

    @functools.cached_property
    def abstract(self) -> TrainState:
        """The state's shapes and dtypes, each with its sharding."""
        shapes = jax.eval_shape(self._fresh, jax.random.key(0))[0]
        return jax.tree.map(_with_sharding, shapes, sharding.place(shapes, self.recipe.rules, self.mesh))

    @functools.cached_property
    def abstract_frozen(self) -> dict[str, Any]:
        """The same for the networks that no phase trains."""
        shapes = jax.eval_shape(self._fresh, jax.random.key(0))[1]
        return jax.tree.map(_with_sharding, shapes, sharding.place(shapes, self.recipe.rules, self.mesh))

    def fresh(self) -> TrainState:
        """A new state, drawn where it belongs; `init_from` is loaded over it."""
        state = self._draw(0, self.abstract)
        loaded = self._loaded(state.params)

        def averages(trees: Mapping[str, Any]) -> dict[str, Any]:
            return {name: ema.init(loaded[name]) if name in loaded else tree for name, tree in trees.items()}

        return state.replace(
            params={**state.params, **loaded},
            ema=averages(state.ema),
            profiles={label: averages(trees) for label, trees in state.profiles.items()},
        )

    def frozen(self) -> dict[str, Any]:
        """The networks that no phase trains, as `init_from` or the seed gives them."""
        networks = self._draw(1, self.abstract_frozen)['networks']
        return {'networks': {**networks, **self._loaded(networks)}}

    def _draw(self, part: int, abstract: Any) -> Any:
        where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        with jax.set_mesh(self.mesh):
            draw = jax.jit(lambda key: self._fresh(key)[part], out_shardings=where)
            return draw(jax.random.key(self.recipe.train.seed))

    def _loaded(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of those networks that come from another run."""
        sources = {name: self.recipe.networks[name].init_from for name in names}
        return {
            name: load_params(self, source, names=(name,))[1][name]
            for name, source in sources.items()
            if source
        }

    def _fresh(self, key: jax.Array) -> tuple[TrainState, dict[str, Any]]:
        params = self.recipe.init(random.fold(key, 'init'))
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
        return state, {'networks': {name: tree for name, tree in params.items() if name not in trained}}

    @functools.cached_property
    def steps(self) -> dict[str, Callable]:
        """The jitted step of each phase; it takes over the state's memory."""
        return {
            phase.name: jax.jit(self._step(phase), donate_argnums=0, out_shardings=(self._where, None))
            for phase in self.recipe.objective.phases
        }

    def _trains(self, phase: Phase) -> dict[str, Trainable]:
        """What of which networks a phase trains."""
        networks = self.recipe.networks
        return {name: networks[name].trainable for name in phase.trains if name in self.recipe.trained}

    def _step(self, phase: Phase) -> Callable:
        recipe = self.recipe
        return make_step(
            phase,
            self._trains(phase),
            self.optimizers[phase.name],
            recipe.averaged,
            recipe.ema,
            recipe.guard,
            recipe.train.accumulate,
        )

    @functools.cached_property
    def held_out(self) -> Callable:
        """The jitted loss on held-out examples."""
        objective = self.recipe.objective
        return jax.jit(make_held_out(objective.held_out or objective.phases[0].loss))

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
        batch = self.abstract_batch(blank_example(self.recipe.config['data']['resolution']))
        key = jax.eval_shape(lambda: jax.random.key(0))
        return self.abstract, self.abstract_frozen, batch, key, jax.ShapeDtypeStruct((), np.int32)

    def trace(self) -> None:
        """Trace every step from shapes alone: what does not fit is said before anything is compiled."""
        with jax.set_mesh(self.mesh):
            for step in self.steps.values():
                step.trace(*self.abstract_arguments())

    def abstract_batch(self, example: Mapping[str, Any]) -> Any:
        """The shapes of a training batch made of such examples."""
        latents = np.zeros((1, *self.recipe.tokenizer.latent), np.float32)
        known = {'image': example['image'][None], 'latents': latents, 'noise': latents}
        arrays = {name: known[name] for name in self.recipe.objective.reads}
        arrays |= self.recipe.conditioner.arrays([example])
        rows = sharding.batch_sharding(self.mesh)
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((self.recipe.train.batch, *a.shape[1:]), a.dtype, sharding=rows),
            arrays,
        )


def assemble(recipe: Recipe, devices: Any = None) -> Program:
    """The program of a recipe on the devices at hand."""
    mesh = sharding.make_mesh(recipe.config.get('mesh', {'data': -1}), devices)
    shards = mesh.shape['data'] * mesh.shape['fsdp']
    train = recipe.train
    for name, count in (('batch', train.batch), ('sample_batch', train.sample_batch)):
        parts = shards * (train.accumulate if name == 'batch' else 1)
        if count % parts:
            raise ValueError(
                f'train.{name} is {count}; it must be a multiple of {parts}: {shards} shards of '
                f'the mesh{" x accumulate" if parts > shards else ""}.'
            )
    optimizers, schedules = {}, {}
    common = dict(recipe.config['optimizer'])
    by_phase = common.pop('phases', {})
    known_keys(by_phase, [phase.name for phase in recipe.objective.phases], 'section optimizer.phases')
    for phase in recipe.objective.phases:
        settings = {**common, **by_phase.get(phase.name, {})}
        updates = updates_before(phase, train.steps)
        built = call(optimizer.build, settings, {'steps': updates}, 'optimizer')
        optimizers[phase.name], schedules[phase.name] = built
    return Program(recipe, mesh, optimizers, schedules)


def updates_before(phase: Phase, step: int) -> int:
    """How often a phase has run before a step: the count that its schedule goes by."""
    return step if phase.when is every_step else sum(map(phase.when, range(step)))


def load_params(
    program: Program,
    workdir: str,
    step: int | None = None,
    names: tuple[str, ...] = (),
    width: float | None = None,
) -> tuple[int, dict]:
    """The step of a run and the parameters of its networks (none named: all that sampling uses).

    Averages where there are; `width` asks for averages of another width than the one that was tracked for
    sampling. Without a step it is the last that is not damaged.
    """
    folder = epath.Path(workdir) / 'checkpoints'
    recipe, wanted = program.recipe, _wanted(program, names)
    with Checkpoints(folder, read_only=True) as checkpoints:
        if step is None:
            step, stored = checkpoints.restore_last(wanted, partial=True)
        else:
            stored = checkpoints.restore(step, wanted, partial=True)
    if width is not None:
        folder = epath.Path(workdir) / 'snapshots'
        stored['ema'] = snapshots.reconstruct(folder, recipe.ema, wanted.get('ema', {}), step, width)
    given = {} if names else program.frozen()['networks']
    return step, {**given, **stored.get('ema', {}), **stored.get('params', {})}


def check_params(
    program: Program, workdir: str, step: int | None = None, names: tuple[str, ...] = ()
) -> None:
    """Refuse a workdir whose checkpoint has not what `load_params` would read; nothing is read yet."""
    with Checkpoints(epath.Path(workdir) / 'checkpoints', read_only=True) as checkpoints:
        checkpoints.check(step, _wanted(program, names), partial=True)


def check_sources(program: Program) -> None:
    """The same for the networks that come from other runs."""
    for name, network in program.recipe.networks.items():
        if network.init_from:
            check_params(program, network.init_from, names=(name,))


def _wanted(program: Program, names: tuple[str, ...]) -> dict[str, Any]:
    """What of a checkpoint makes up networks (none named: all that are trained), by group."""
    recipe, abstract = program.recipe, program.abstract
    everything = {**abstract.params, **program.abstract_frozen['networks']}
    names = names or tuple(abstract.params)
    averaged = [name for name in names if name in recipe.averaged]
    wanted = {
        'ema': {name: abstract.ema[name] for name in averaged},
        'params': {name: everything[name] for name in names if name not in averaged},
    }
    return {group: trees for group, trees in wanted.items() if trees}


def sampling_params(program: Program, state: TrainState, frozen: Mapping) -> dict[str, Any]:
    """The parameters that sampling uses in the middle of a run."""
    return {**frozen['networks'], **state.params, **state.ema}


def number(step: int) -> np.ndarray:
    """A step's number as the compiled steps take it, always of one type."""
    return np.asarray(step, np.int32)


def _with_sharding(leaf: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
