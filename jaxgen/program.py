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
from jaxgen.objectives import Phase
from jaxgen.recipe import Recipe, call
from jaxgen.training import ema, optimizer, sharding
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.state import TrainState
from jaxgen.training.step import make_held_out, make_step


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
        averages = {name: ema.init(tree) for name, tree in loaded.items() if name in state.ema}
        return state.replace(params={**state.params, **loaded}, ema={**state.ema, **averages})

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
            name: load_params(self, source, names=(name,))[name] for name, source in sources.items() if source
        }

    def _fresh(self, key: jax.Array) -> tuple[TrainState, dict[str, Any]]:
        params = self.recipe.init(random.fold(key, 'init'))
        trained = {name: params[name] for name in self.recipe.trained}
        states = {
            phase.name: self.optimizers[phase.name].init(_of(phase, trained))
            for phase in self.recipe.objective.phases
        }
        averages = {name: ema.init(params[name]) for name in self.recipe.averaged}
        inner = self.recipe.objective.init(random.fold(key, 'objective'))
        state = TrainState(trained, states, averages, inner)
        return state, {'networks': {name: tree for name, tree in params.items() if name not in trained}}

    @functools.cached_property
    def steps(self) -> dict[str, Callable]:
        """The jitted step of each phase; it takes over the state's memory."""
        return {
            phase.name: jax.jit(self._step(phase), donate_argnums=0, out_shardings=(self._where, None))
            for phase in self.recipe.objective.phases
        }

    def _step(self, phase: Phase) -> Callable:
        train, average = self.recipe.train, self.recipe.ema
        return make_step(
            phase,
            tuple(_of(phase, self.abstract.params)),
            self.optimizers[phase.name],
            self.recipe.averaged,
            average.decay,
            average.warmup,
            train.accumulate,
        )

    @functools.cached_property
    def held_out(self) -> Callable:
        """The jitted loss on held-out examples."""
        objective = self.recipe.objective
        return jax.jit(make_held_out(objective.held_out or objective.phases[0].loss))

    @functools.cached_property
    def _where(self) -> Any:
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def abstract_batch(self, example: Mapping[str, Any]) -> Any:
        """The shapes of a training batch made of such examples."""
        arrays = {'image': example['image'][None], **self.recipe.conditioner.arrays([example])}
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
    by_phase = dict(common.pop('phases', {}))
    for phase in recipe.objective.phases:
        settings = {**common, **by_phase.pop(phase.name, {})}
        updates = updates_before(phase, train.steps)
        built = call(optimizer.build, settings, {'steps': updates}, 'optimizer')
        optimizers[phase.name], schedules[phase.name] = built
    if by_phase:
        raise ValueError(
            f"optimizer.phases has '{next(iter(by_phase))}', but the objective's phases are "
            f'{", ".join(optimizers)}.'
        )
    return Program(recipe, mesh, optimizers, schedules)


def updates_before(phase: Phase, step: int) -> int:
    """How often a phase has run before a step: the count that its schedule goes by."""
    return sum(map(phase.when, range(step)))


def load_params(program: Program, workdir: str, step: int | None = None, names: tuple[str, ...] = ()) -> dict:
    """The parameters of networks (none named: all that sampling uses), averages where there are."""
    folder = epath.Path(workdir) / 'checkpoints'
    recipe, abstract = program.recipe, program.abstract
    everything = {**abstract.params, **program.abstract_frozen['networks']}
    given = {} if names else program.frozen()['networks']
    names = names or tuple(abstract.params)
    with Checkpoints(folder, read_only=True) as checkpoints:
        averaged = [name for name in names if name in recipe.averaged]
        wanted = {
            'ema': {name: abstract.ema[name] for name in averaged},
            'params': {name: everything[name] for name in names if name not in averaged},
        }
        wanted = {group: trees for group, trees in wanted.items() if trees}
        stored = checkpoints.restore(step, wanted, partial=True)
    return {**given, **stored.get('ema', {}), **stored.get('params', {})}


def sampling_params(program: Program, state: TrainState, frozen: Mapping) -> dict[str, Any]:
    """The parameters that sampling uses in the middle of a run."""
    return {**frozen['networks'], **state.params, **state.ema}


def number(step: int) -> np.ndarray:
    """A step's number as the compiled steps take it, always of one type."""
    return np.asarray(step, np.int32)


def _of(phase: Phase, params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: params[name] for name in phase.trains if name in params}


def _with_sharding(leaf: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
