"""`--mode=train`: run the objective's phases to the last step, and leave a record of it.

A second call in the same workdir goes on from the last good checkpoint, or says that the run is complete; it
is refused where what trained the checkpoint has changed. A process that is asked to leave saves first. A save
that fails is tried again at the next interval: only the last one has to succeed.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxgen import pictures
from jaxgen.data.contents import contents
from jaxgen.data.pipeline import batches
from jaxgen.features import NAME as TEXT
from jaxgen.features import NULL
from jaxgen.generate import labelled, make_generator
from jaxgen.jobs.cache import check_weights
from jaxgen.processes import current
from jaxgen.program import Program, assemble, check_sources, sampling_params
from jaxgen.recipe import Recipe
from jaxgen.training import guard, sharding, snapshots
from jaxgen.training.checkpoint import Checkpoints, SaveFailed
from jaxgen.training.digest import fingerprint
from jaxgen.training.preemption import Leaving
from jaxgen.training.profile import traced
from jaxgen.training.record import differences
from jaxgen.training.state import TrainState
from jaxgen.training.step import number
from jaxgen.training.sums import add, means
from jaxgen.training.telemetry import Telemetry, read_lines, write_json

log = logging.getLogger('jaxgen')
SHOWN = 16
LATER = 'All processes need the same workdir; on a network disk, try again when it has caught up.'
ALIKE = 'All processes need the same examples in the same order; copy the data anew, or share them.'


def check(recipe: Recipe) -> None:
    """Refuse what `run` could not do, before anything is compiled or data are read."""
    program = assemble(recipe)
    draws = recipe.sampler and recipe.train.sample_every
    idle = {*recipe.spared} - {*(_to_draw(recipe) if draws else ())}
    check_sources(program, [name for name in recipe.networks if name not in idle])
    for name in recipe.sampler.draws if draws else ():
        if name not in recipe.trained and not recipe.networks[name].init_from:
            log.warning(
                "The network '%s' is random and draws pictures of this run; give networks.%s.init_from.",
                name,
                name,
            )
    if recipe.cache.cache:
        check_weights(program)


def run(
    recipe: Recipe, workdir: str, watch: Callable[[int, np.ndarray], None] | None = None
) -> dict[str, Any]:
    """Train to `train.steps`; returns what `train.json` holds. `watch(step, picture)` sees the samples."""
    train, program, workdir = recipe.train, assemble(recipe), epath.Path(workdir)
    folder = workdir / 'checkpoints'
    with Leaving() as leaving, Checkpoints(folder, train.keep, train.keep_period or None) as checkpoints:
        current.agree('its checkpoints', {'the last checkpoint': checkpoints.latest()}, LATER)
        first, state, sums = _last(checkpoints, program, _same(recipe, workdir))
        if first >= train.steps:
            log.info(
                '%s is complete: %d steps of %d. Raise train.steps to go on.', workdir, first, train.steps
            )
            if (record := current.told(_read_record(workdir))).get('step') == first:
                return record
        program.trace()
        current.agree('the data', contents(recipe.source('train')), ALIKE)
        if train.held_out_every or (recipe.sampler and train.sample_every):
            recipe.source('held_out')  # what is wrong with it is said now, not at the first interval
        frozen = program.frozen(tuple(program.abstract_beside['networks']))
        if state is None:
            state = program.fresh()
        else:
            log.info('Going on from step %d of %s.', first, workdir)
        step = first
        while True:
            with Telemetry(workdir, train.steps, step, jax.process_index() == 0, watch=watch) as telemetry:
                loop = Loop(program, telemetry, workdir, frozen, sums)
                state, step, stuck = _stretch(loop, checkpoints, leaving, state, step)
            if not stuck:
                break
            state, step, sums = _turn_back(loop, checkpoints, state, step, stuck)
        if step < train.steps:
            log.info('Left at step %d of %d, which is saved; the same command goes on.', step, train.steps)
            return {}
        return _record(workdir, recipe, step, state, loop)


def _same(recipe: Recipe, workdir: epath.Path) -> Callable[[Mapping[str, Any]], None]:
    """Refuses a checkpoint that was trained by another config."""

    def accept(metadata: Mapping[str, Any]) -> None:
        if metadata.get('converted'):
            raise ValueError(
                f'{workdir} holds converted weights, no training to go on with; train in another workdir, '
                f'from --weights or --config.networks.model.init_from={workdir}.'
            )
        if differing := differences(metadata.get('config', {}), _settled(recipe)):
            raise ValueError(
                f'{workdir} was trained by another config: {differing}. Put these back, or use another '
                'workdir.'
            )

    return accept


def _settled(recipe: Recipe) -> dict[str, Any]:
    """The config with the training loop's defaults, whether they are written out or not."""
    return {**recipe.config, 'train': dataclasses.asdict(recipe.train)}


def _last(
    checkpoints: Checkpoints, program: Program, accept: Callable[[Mapping[str, Any]], None]
) -> tuple[int, TrainState | None, dict[str, Any]]:
    """The step to go on from, its state (None: there is none), and the sums of metrics not yet written."""
    if checkpoints.latest() is None:
        return 0, None, {}
    step, trees = checkpoints.restore_last(program.abstract.trees(), accept=accept)
    return step, TrainState(**trees), _sums(checkpoints, step)


def _sums(checkpoints: Checkpoints, step: int) -> dict[str, Any]:
    sums = checkpoints.metadata(step).get('sums', {})
    return {name: tuple(map(np.float32, pair)) for name, pair in sums.items()}


def _stretch(
    loop: 'Loop', checkpoints: Checkpoints, leaving: Leaving, state: TrainState, first: int
) -> tuple[TrainState, int, tuple[str, ...]]:
    """Train to the last step, to where we are asked to leave, or to where the guard finds phases stuck.

    Returns the state, the step, and those phases.
    """
    recipe, train, step = loop.program.recipe, loop.program.recipe.train, first
    for step, moved in traced(loop.steps(state, first), first, train.profile, loop.workdir / 'profile'):
        state, leaves = moved, leaving.asked()
        saves, calm = step % train.save_every == 0 or step == train.steps, True
        if saves or loop.logs(step):
            calm, stuck = guard.inspect(recipe.guard, state, step == train.steps)
            if stuck:
                return state, step, stuck
        if leaves or (saves and (calm or step == train.steps)):
            _save(loop, checkpoints, state, step, leaves or step == train.steps)
        if leaves and step < train.steps:  # after the last one only the looks at it are left
            break
    return state, step, ()


def _save(loop: 'Loop', checkpoints: Checkpoints, state: TrainState, step: int, last: bool) -> None:
    """Save; only the last save of a run has to succeed."""
    recipe, train = loop.program.recipe, loop.program.recipe.train
    _settle(checkpoints)
    try:
        regular = step % train.save_every == 0 or step == train.steps
        if regular and recipe.ema.snapshot_at(step, train.steps):
            snapshots.store(loop.workdir / 'snapshots', step, state)  # first: a checkpoint promises it
        sums = {name: [float(total), float(weight)] for name, (total, weight) in loop.sums.items()}
        checkpoints.save(step, state.trees(), {'config': _settled(recipe), 'sums': sums})
        if last:
            checkpoints.wait()
    except SaveFailed as error:
        if last:
            kept = checkpoints.latest()
            goes_on = f'goes on from step {kept}, which is good' if kept else 'begins anew'
            raise SaveFailed(f'{error}. Make room: the same command {goes_on}.') from error
        log.warning('%s. Training goes on; the next save is at its interval.', error)


def _settle(checkpoints: Checkpoints) -> None:
    """Wait for the save in progress, which may fail."""
    try:
        checkpoints.wait()
    except SaveFailed as error:
        log.warning('%s. Training goes on.', error)


def _turn_back(
    loop: 'Loop', checkpoints: Checkpoints, state: TrainState, step: int, phases: tuple[str, ...]
) -> tuple[TrainState, int, dict[str, Any]]:
    """The last regular checkpoint as `_last` gives it, to go on from with other data; or the run's end."""
    _settle(checkpoints)
    program, steps = loop.program, checkpoints.steps()
    # Not of one that a signal left at a step of its own, so that an interrupted run turns back as any other.
    regular = [kept for kept in steps if kept % program.recipe.train.save_every == 0]
    target = max(regular or steps, default=0)
    if not guard.may_turn_back(program.recipe.guard, state.progress, target):
        cause = loop.diagnose(state, step, phases[0])
        kept = f'checkpoint {target} is the last good one' if steps else 'there is no checkpoint'
        raise FloatingPointError(f'training is stuck at step {step}: {cause}; {kept}.')
    log.warning(
        'Step %d: %s skips every step; back to step %d, on other data.', step, ', '.join(phases), target
    )
    # What a signal left beyond it: the run will come to these steps again, with other data.
    for later in steps[steps.index(target) + 1 if target else 0 :]:
        checkpoints.set_aside(later, 'left')
    if not target:
        before, sums = program.fresh(), {}
    else:
        before = TrainState(**checkpoints.restore(target, program.abstract.trees()))
        sums = _sums(checkpoints, target)
    progress = guard.turned_back(before.progress, state.progress, target, step)
    return before.replace(progress=progress), target, sums


class Loop:
    """The steps of one call: batches in, metrics, held-out losses and pictures out."""

    def __init__(
        self, program: Program, telemetry: Telemetry, workdir: epath.Path, frozen: Mapping, sums: Mapping
    ):
        self.program, self.telemetry, self.workdir, self.frozen = program, telemetry, workdir, frozen
        self.sums = dict(sums)  # of the metrics since they were last written
        self.metrics: dict[str, float] = {}
        self.seconds, self.trained = 0.0, 0
        self._draw = make_generator(program.recipe, program.mesh, program.recipe.train.sample_batch)

    def steps(self, state: TrainState, first: int) -> Iterator[tuple[int, TrainState]]:
        """Yield the state after each step, counted from 1."""
        program, train = self.program, self.program.recipe.train
        key = jax.random.key(train.seed)
        start = first + int(state.progress['data_offset'])
        source = self._batches('train', start, train.flip) if first < train.steps else iter(())
        updates = {phase.name: phase.before(first) for phase in program.recipe.objective.phases}
        if first:
            self._recall(state, first)
        began, counted = time.time(), first
        for step in range(first, train.steps):
            with jax.set_mesh(program.mesh):
                batch = sharding.to_global(next(source), program.mesh)
                for phase in program.recipe.objective.phases:
                    if phase.when(step):
                        updates[phase.name] += 1
                        state, metrics = program.steps[phase.name](
                            state, self.frozen, batch, key, number(step)
                        )
                        self.sums = add(self.sums, phase.name, metrics)
            done = step + 1
            if self.logs(done):
                found = {**means(self.sums), **guard.skipped(state.progress)}
                self.metrics.update(found)
                now, self.sums = time.time(), {}
                if step > first:  # the first step compiles
                    self.seconds += now - began
                    self.trained += done - counted
                rate = (done - counted) * train.batch / (now - began)
                began, counted = now, done
                rates = {
                    f'{name}/learning_rate': float(f(max(0, updates[name] - 1)))
                    for name, f in program.schedules.items()
                }
                self.telemetry.scalars(done, {**found, **rates, 'images_per_second': rate})
            pause = time.time()
            yield done, state  # saved before anything else can fail
            self._look(state, done)
            began += time.time() - pause

    def logs(self, done: int) -> bool:
        """Whether the metrics up to a step are written there."""
        train = self.program.recipe.train
        return done % train.log_every == 0 or done in (1, train.steps)

    def diagnose(self, state: TrainState, done: int, phase: str) -> str:
        """Why the last step could not be taken."""
        program, train = self.program, self.program.recipe.train
        start = done - 1 + int(state.progress['data_offset'])
        with jax.set_mesh(program.mesh):
            batch = sharding.to_global(next(self._batches('train', start, train.flip)), program.mesh)
            return program.diagnose(
                phase, state, self.frozen, batch, jax.random.key(train.seed), number(done - 1)
            )

    def _recall(self, state: TrainState, first: int) -> None:
        """Know and do what the run knew, and would have done, had it not been cut off after its save."""
        lines = read_lines(self.workdir, first)
        for line in lines:
            told = {name: value for name, value in line.items() if '/' in name}
            self.metrics.update({k: v for k, v in told.items() if not k.endswith('/learning_rate')})
        looked = any(name.startswith('held_out/') for line in lines if line['step'] == first for name in line)
        looked, drawn = current.told([looked, self._picture(first).exists()])
        self._look(state, first, not looked, not drawn)

    def _look(self, state: TrainState, done: int, held_out: bool = True, picture: bool = True) -> None:
        """Held-out losses and pictures, at their intervals and at the end, where they are wanted."""
        train = self.program.recipe.train

        def due(every: int) -> bool:
            return every > 0 and (done % every == 0 or done == train.steps)

        if held_out and due(train.held_out_every):
            self.metrics.update(self._held_out(state, done))
        if picture and self.program.recipe.sampler and due(train.sample_every):
            self._pictures(state, done)

    def _held_out(self, state: TrainState, done: int) -> dict[str, float]:
        program, train = self.program, self.program.recipe.train
        sums: dict[str, Any] = {}
        source, key = self._batches('held_out', 0, False), jax.random.key(train.seed)
        for index in range(train.held_out_batches):
            with jax.set_mesh(program.mesh):
                batch = sharding.to_global(next(source), program.mesh)
                metrics = program.held_out(
                    state.params, state.ema, state.state, self.frozen, batch, key, number(index)
                )
            sums = add(sums, 'held_out', metrics)
        found = dict(program.recipe.objective.told(means(sums)))
        self.telemetry.scalars(done, found)
        return found

    def _pictures(self, state: TrainState, done: int) -> None:
        recipe = self.program.recipe
        examples = recipe.metric.examples() if recipe.metric else _held_out_examples(recipe)
        examples, negatives = examples[:SHOWN], _negatives(recipe, examples[:SHOWN])
        beside = self.program.frozen(_to_draw(recipe))['networks']  # let go when the pictures are there
        images = self._draw(
            {**sampling_params(self.program, state, self.frozen), **beside},
            examples,
            range(len(examples)),
            recipe.sampler.knobs(),
            negatives,
        )
        picture = pictures.grid(images, **labelled(recipe, examples))
        if jax.process_index() == 0:
            try:
                pictures.save(self._picture(done), picture)
            except OSError as error:
                log.warning('The picture of step %d could not be written: %s.', done, error)
            self.telemetry.images(done, 'samples', picture)

    def _picture(self, done: int) -> epath.Path:
        return self.workdir / 'pictures' / f'{done:07d}.png'

    def _batches(self, split: str, first: int, flip: bool) -> Iterator[dict[str, np.ndarray]]:
        recipe, train = self.program.recipe, self.program.recipe.train
        rows = sharding.local_rows(self.program.mesh, train.batch)  # the mesh decides, not the process
        return batches(
            recipe.source(split),
            recipe.conditioner.arrays,
            seed=train.seed,
            batch=train.batch,
            start_step=first,
            rows=rows,
            train=split == 'train',
            flip=flip,
            threads=train.threads,
        )


def _held_out_examples(recipe: Recipe) -> list[Mapping[str, Any]]:
    source = recipe.source('held_out')
    return [source[i] for i in range(min(SHOWN, len(source)))]


def _to_draw(recipe: Recipe) -> list[str]:
    """What pictures need of the networks that no step runs: held-out captions have been read."""
    return [name for name in recipe.spared if name != TEXT or recipe.metric]


def _negatives(recipe: Recipe, examples: list[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
    """What stands for no condition, where examples bring its features along."""
    nothing = recipe.conditioner.nothing
    if nothing is None or NULL not in examples[0]:
        return None
    return [{**nothing, TEXT: example[NULL], NULL: example[NULL]} for example in examples]


def _read_record(workdir: epath.Path) -> dict[str, Any]:
    path = workdir / 'train.json'
    return json.loads(path.read_text()) if path.exists() else {}


def _record(workdir: epath.Path, recipe: Recipe, step: int, state: TrainState, loop: Loop) -> dict[str, Any]:
    fingerprints = {name: fingerprint(tree) for name, tree in state.trees().items()}
    record = {
        'step': step,
        'config': recipe.config,
        'metrics': loop.metrics,
        'images_per_second': loop.trained * recipe.train.batch / loop.seconds if loop.seconds else None,
        'fingerprints': fingerprints,
    }
    if jax.process_index() == 0:
        write_json(workdir / 'train.json', record)
    return record
