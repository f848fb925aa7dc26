"""Runs that meet numbers which are not finite: skipped, counted, turned back, or stopped with a name."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nouns import tiny

from jaxgen import recipe
from jaxgen.jobs import train
from jaxgen.program import assemble
from jaxgen.training import diagnosis, guard, sharding
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.step import number

DEPTH = 2


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """One device, and programs compiled without optimisation."""
    monkeypatch.setattr(train, 'assemble', functools.partial(assemble, devices=jax.devices()[:1]))
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def build(steps, scan=True, **watch):
    return tiny.build(
        model={'name': 'dit', 'patch': 4, 'hidden': 16, 'heads': 2, 'depth': DEPTH, 'scan': scan},
        path={'name': 'linear'},
        prediction={'output': 'velocity', 'time': 'thousand'},
        ema={'decay': 0.9},
        guard=watch,
        train={'steps': steps, 'save_every': 2, 'log_every': 1, 'keep': 9},
    )


@pytest.fixture
def poisoned(monkeypatch):
    """Makes batches at given places of the data's stream not finite; returns the places that were read."""
    read, whole = [], train.batches

    def choose(bad):
        def batches(*arguments, start_step=0, **options):
            for place, batch in enumerate(whole(*arguments, start_step=start_step, **options), start_step):
                read.append(place)
                image = batch['image'].astype(np.float32)
                yield {**batch, 'image': np.full_like(image, np.nan) if place in bad else image}

        monkeypatch.setattr(train, 'batches', batches)
        return read

    return choose


def lines(workdir):
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ('time', 'images_per_second')} for record in records]


def states(made, workdir):
    with Checkpoints(workdir / 'checkpoints', read_only=True) as kept:
        abstract = assemble(made, jax.devices()[:1]).abstract.trees()
        return {step: kept.restore(step, abstract) for step in kept.steps()}


def assert_resuming_from(step, made, workdir, record, elsewhere):
    """The same run, killed after the checkpoint of a step, ends in the same bits and lines."""
    shutil.copytree(workdir, elsewhere)
    for folder in (elsewhere / 'checkpoints').iterdir():
        if folder.name.isdigit() and int(folder.name) > step:
            shutil.rmtree(folder)
    (elsewhere / 'train.json').unlink()
    assert train.run(made, elsewhere)['fingerprints'] == record['fingerprints']
    assert lines(elsewhere) == lines(workdir)


def test_a_poisoned_batch_is_skipped_and_counted(tmp_path, poisoned):
    poisoned({3})
    made = build(steps=6)
    record = train.run(made, tmp_path / 'run')
    assert record['metrics']['denoise/skipped'] == 1
    found = lines(tmp_path / 'run')
    assert ['denoise/loss' in line for line in found] == [True, True, True, False, True, True]
    assert [line['denoise/skipped'] for line in found] == [0, 0, 0, 1, 1, 1]
    kept = states(made, tmp_path / 'run')
    for step, taken in {2: 2, 6: 5}.items():
        counts = {int(leaf) for leaf in jax.tree.leaves(kept[step]['optimizer']) if leaf.ndim == 0}
        assert counts == {taken} == {int(kept[step]['progress']['averaged']['model'])}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept[6]))
    assert_resuming_from(2, made, tmp_path / 'run', record, tmp_path / 'before')


def test_a_skipped_step_changes_nothing_but_counts(tmp_path, poisoned):
    poisoned({3, 4})
    made = build(steps=5)
    train.run(made, tmp_path)
    kept = states(made, tmp_path)
    assert list(kept) == [2, 5]  # in between, the last step was skipped: nothing to turn back to
    train.run(build(steps=3), tmp_path / 'shorter')
    before, after = states(made, tmp_path / 'shorter')[3], kept[5]
    assert int(after.pop('progress')['phases']['denoise']['row']) == 2
    before.pop('progress')
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_a_stuck_run_turns_back_to_other_data(tmp_path, poisoned):
    read = poisoned(set(range(4, 9)))
    made = build(steps=10, patience=3)
    record = train.run(made, tmp_path / 'run')
    # Steps 5 to 7 skip places 4 to 6; back at step 4, the run goes on with places 7 to 12: two more are bad.
    assert [place for place in dict.fromkeys(read) if place < 13] == list(range(13))
    kept = states(made, tmp_path / 'run')
    progress = jax.tree.map(int, kept[10]['progress'])
    assert (progress['data_offset'], progress['rollbacks'], progress['rolled_to']) == (3, 1, 4)
    assert progress['phases']['denoise'] | {'usual': 0} == {'taken': 8, 'skipped': 5, 'row': 0, 'usual': 0}
    assert [line['step'] for line in lines(tmp_path / 'run')] == list(range(1, 11))
    assert_resuming_from(4, made, tmp_path / 'run', record, tmp_path / 'before')
    assert_resuming_from(8, made, tmp_path / 'run', record, tmp_path / 'after')


def test_a_run_that_stays_stuck_stops_with_a_name(tmp_path, poisoned):
    read = poisoned(set(range(5, 99)))
    made = build(steps=20, patience=2, rollbacks=1)
    with pytest.raises(
        FloatingPointError, match=r'stuck at step 6: batch/image is .*checkpoint 4 is the last'
    ):
        train.run(made, tmp_path)
    assert max(read) < 12
    kept = states(made, tmp_path)
    assert max(kept) == 4 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept[4]))


@pytest.fixture(scope='module', params=[True, False], ids=['scanned', 'unrolled'])
def step(request):
    """A program's state and its arguments of the first step."""
    program = assemble(build(steps=4, scan=request.param), jax.devices()[:1])
    example = program.recipe.source('train')[0]
    examples = [{**example, 'label': i % 4} for i in range(8)]
    arrays = {
        'image': np.stack([example['image']] * 8),
        **program.recipe.conditioner.arrays(examples),
    }
    with jax.set_mesh(program.mesh):
        batch = sharding.to_global(arrays, program.mesh)
    return program, program.fresh(), (program.frozen(), batch, jax.random.key(0), number(0))


def poison(state, pattern, layer, value):
    def changed(path, leaf):
        return leaf.at[layer].set(value) if pattern in sharding.path_string(path) else leaf

    return state.replace(params=jax.tree_util.tree_map_with_path(changed, state.params))


@pytest.mark.parametrize(
    ('value', 'sentence'),
    [
        (np.nan, 'model/blocks/1/mlp/up/kernel is not finite'),
        (1e30, 'the first result that is not finite is in model/blocks/1/mlp'),
    ],
)
def test_the_first_layer_that_is_not_finite_is_named(step, value, sentence):
    program, state, arguments = step
    with jax.set_mesh(program.mesh):
        assert sentence in program.diagnose('denoise', poison(state, 'mlp/up/kernel', 1, value), *arguments)


@pytest.mark.parametrize('value', [0.0, np.nan])
def test_a_run_does_not_end_in_a_state_that_is_not_finite(step, value):
    program, state, _ = step
    counts = {**state.progress['phases']['denoise'], 'row': jnp.int32(1)}
    state = poison(state, 'mlp/up/kernel', 1, value)
    state = state.replace(progress={**state.progress, 'phases': {'denoise': counts}})
    watch = program.recipe.guard
    assert guard.inspect(watch, state, last=False) == (False, ())
    assert guard.inspect(watch, state, last=True) == (False, ('denoise',) if np.isnan(value) else ())


def why(loss, params, batch=1.0):
    rest = ({'model': params}, {}, {}, {'image': jnp.full(3, batch)})
    return diagnosis.why(lambda p, *rest: loss(p['model'], rest[-1]['image']), {'model': params}, rest, {})


def test_gradients_are_named_where_the_loss_is_finite():
    params = {'blocks': {'stack': {'0': {'w': jnp.ones((2, 3))}, '1': {'w': jnp.asarray([[0.0] * 3])}}}}

    def loss(p, x):
        stack = p['blocks']['stack']
        return sum(jnp.sqrt(jnp.sum(leaf['w'] ** 2)) for leaf in stack.values()) * x.sum()

    assert why(loss, params) == 'the gradient of model/blocks/2/w is not finite'
    params['blocks']['stack']['1'] = {'w': jnp.full((1, 3), 5.0)}
    assert 'the longest gradient is that of model/blocks/' in why(lambda p, x: loss(p, x) * 7, params)


def test_the_first_iteration_and_the_condition_are_found():
    def loop(w, x):
        def body(x, row):
            with jax.named_scope('exponent'):
                return jax.checkpoint(jnp.exp)(x * row), None

        with jax.named_scope('layers_4'):
            return jax.lax.scan(body, x, w)[0].sum()

    assert 'in 6/exponent/exp' in why(loop, jnp.asarray([1.0, 1.0, 1e4, 1.0])).replace(' (', '/')
    # An infinity that was put there, such as a mask's, is nobody's fault.
    masked = why(
        lambda w, x: jax.nn.softmax(jnp.where(x > 0, -jnp.inf, w)).sum() + 0 * jnp.log(x - 1).sum(),
        jnp.ones(3),
    )
    assert '(log)' in masked


def test_spikes_are_judged_by_what_is_usual():
    watch = guard.build(spike=5.0)
    counts = guard.init(('denoise',), ())['phases']['denoise']
    for i in range(guard.SETTLING):
        healthy, counts = watch.judge(counts, jnp.float32(1), jnp.float32(100 if i == 0 else 1 + i % 2))
        assert healthy
    usual = float(counts['usual'])
    assert 1 < usual < 10
    for norm, expected in ((6 * usual, False), (jnp.nan, False), (4 * usual, True)):
        healthy, counts = watch.judge(counts, jnp.float32(1), jnp.float32(norm))
        assert bool(healthy) is expected
    assert int(counts['skipped']) == 2 and int(counts['row']) == 0
    assert int(counts['taken']) == guard.SETTLING + 1
    healthy, after = guard.build().judge(counts, jnp.float32(1), jnp.float32(1e9))
    assert healthy
    healthy, _ = guard.build().judge(counts, jnp.float32(jnp.inf), jnp.float32(1))
    assert not healthy


@pytest.mark.parametrize(
    ('settings', 'sentence'),
    [
        ({'spike': 0.5}, 'guard.spike is 0.5'),
        ({'patience': 0}, 'patience is 0'),
        ({'rollbacks': -1}, 'is -1'),
    ],
)
def test_what_is_no_guard_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        recipe.call(guard.build, settings, {}, 'guard')
