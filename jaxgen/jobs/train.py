"""`--mode=train`: run the objective's phases to the last step, and leave a record of it.

A second call in the same workdir goes on from the last checkpoint, or says that the run is complete.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxgen import pictures
from jaxgen.data.pipeline import batches
from jaxgen.generate import make_generator
from jaxgen.program import Program, assemble, number, sampling_params, updates_before
from jaxgen.recipe import Recipe
from jaxgen.training import sharding
from jaxgen.training.checkpoint import Checkpoints, fingerprint
from jaxgen.training.state import TrainState
from jaxgen.training.telemetry import Telemetry, write_json

log = logging.getLogger('jaxgen')
SHOWN = 16


def run(recipe: Recipe, workdir: str) -> dict[str, Any]:
    """Train to `train.steps`; returns what `train.json` holds."""
    train, program, workdir = recipe.train, assemble(recipe), epath.Path(workdir)
    with Checkpoints(workdir / 'checkpoints', train.keep, train.keep_period or None) as checkpoints:
        first = checkpoints.latest() or 0
        if first >= train.steps:
            log.info(
                '%s is complete: %d steps of %d. Raise train.steps to go on.', workdir, first, train.steps
            )
            if (record := _read_record(workdir)).get('step') == first:
                return record
        if train.held_out_every or (recipe.sampler and train.sample_every):
            recipe.source('held_out')  # what is wrong with it is said now, not at the first interval
        frozen = program.frozen()
        if first:
            log.info('Going on from step %d of %s.', first, workdir)
            state = TrainState(**checkpoints.restore(first, program.abstract.trees()))
        else:
            state = program.fresh()
        with Telemetry(workdir, train.steps, first, jax.process_index() == 0) as telemetry:
            loop = Loop(program, telemetry, workdir, frozen)
            for step, moved in loop.steps(state, first):
                state = moved
                if step % train.save_every == 0 or step == train.steps:
                    checkpoints.save(step, state.trees(), {'config': recipe.config})
        checkpoints.wait()
        return _record(workdir, recipe, max(first, train.steps), state, loop)


class Loop:
    """The steps of one call: batches in, metrics, held-out losses and pictures out."""

    def __init__(self, program: Program, telemetry: Telemetry, workdir: epath.Path, frozen: Mapping):
        self.program, self.telemetry, self.workdir, self.frozen = program, telemetry, workdir, frozen
        self.metrics: dict[str, float] = {}
        self.seconds, self.trained = 0.0, 0
        self._draw = make_generator(program.recipe, program.mesh, program.recipe.train.sample_batch)

    def steps(self, state: TrainState, first: int) -> Iterator[tuple[int, TrainState]]:
        """Yield the state after each step, counted from 1."""
        program, train = self.program, self.program.recipe.train
        key = jax.random.key(train.seed)
        source = self._batches('train', first, train.flip) if first < train.steps else iter(())
        updates = {phase.name: updates_before(phase, first) for phase in program.recipe.objective.phases}
        sums: dict[str, Any] = {}
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
                        sums = _add(sums, phase.name, metrics)
            done = step + 1
            if done % train.log_every == 0 or done == train.steps or done == 1:
                means = _means(sums)
                self.metrics.update(means)
                now, sums = time.time(), {}
                if step > first:  # the first step compiles
                    self.seconds += now - began
                    self.trained += done - counted
                rate = (done - counted) * train.batch / (now - began)
                began, counted = now, done
                rates = {
                    f'{name}/learning_rate': float(f(max(0, updates[name] - 1)))
                    for name, f in program.schedules.items()
                }
                self.telemetry.scalars(done, {**means, **rates, 'images_per_second': rate})
            pause = time.time()
            yield done, state  # saved before anything else can fail
            self._look(state, done)
            began += time.time() - pause

    def _look(self, state: TrainState, done: int) -> None:
        """Held-out losses and pictures, at their intervals and at the end."""
        train = self.program.recipe.train

        def due(every: int) -> bool:
            return every > 0 and (done % every == 0 or done == train.steps)

        if due(train.held_out_every):
            self.metrics.update(self._held_out(state, done))
        if self.program.recipe.sampler and due(train.sample_every):
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
            sums = _add(sums, 'held_out', metrics)
        means = _means(sums)
        self.telemetry.scalars(done, means)
        return means

    def _pictures(self, state: TrainState, done: int) -> None:
        recipe = self.program.recipe
        examples = recipe.metric.examples() if recipe.metric else _held_out_examples(recipe)
        examples = examples[:SHOWN]
        images = self._draw(
            sampling_params(self.program, state, self.frozen),
            examples,
            range(len(examples)),
            recipe.sampler.knobs(),
        )
        captions = [recipe.conditioner.describe(example) for example in examples]
        picture = pictures.grid(images, captions)
        if jax.process_index() == 0:
            pictures.save(self.workdir / 'pictures' / f'{done:07d}.png', picture)
            self.telemetry.images(done, 'samples', picture)

    def _batches(self, split: str, first: int, flip: bool) -> Iterator[dict[str, np.ndarray]]:
        recipe, train = self.program.recipe, self.program.recipe.train
        rows = sharding.local_rows(self.program.mesh, train.batch)  # the mesh decides, not the process
        count = rows.stop - rows.start
        return batches(
            recipe.source(split),
            recipe.conditioner.arrays,
            seed=train.seed,
            batch=train.batch,
            start_step=first,
            process=rows.start // count,
            processes=train.batch // count,
            train=split == 'train',
            flip=flip,
            threads=train.threads,
        )


def _held_out_examples(recipe: Recipe) -> list[Mapping[str, Any]]:
    source = recipe.source('held_out')
    return [source[i] for i in range(min(SHOWN, len(source)))]


def _add(sums: dict[str, Any], phase: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    named = {f'{phase}/{name}': pair for name, pair in metrics.items()}
    return {
        **sums,
        **{
            name: jax.tree.map(lambda a, b: a + b, sums[name], pair) if name in sums else pair
            for name, pair in named.items()
        },
    }


def _means(sums: Mapping[str, Any]) -> dict[str, float]:
    fetched = jax.device_get(sums)
    return {name: float(total / weight) for name, (total, weight) in fetched.items() if weight > 0}


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
