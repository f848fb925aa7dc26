"""A run that tracks EDM2's profiles: what it stores, and a width made of it that was never tracked."""

import functools

import jax
import numpy as np
import pytest
from nouns import tiny

from jaxgen.jobs import train
from jaxgen.program import assemble, load_params
from jaxgen.training.checkpoint import Checkpoints

STEPS, EVERY = 24, 4


def build(widths, **changes):
    return tiny.build(
        model={'name': 'dit', 'patch': 4, 'hidden': 16, 'heads': 2, 'depth': 1},
        path={'name': 'linear'},
        prediction={'output': 'velocity', 'time': 'thousand'},
        ema={'profile': 'power', 'widths': widths} if widths else {},
        train={'steps': STEPS, 'save_every': EVERY, 'log_every': 8, 'keep': 1, **changes},
    )


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Two devices, and programs compiled without optimisation."""
    monkeypatch.setattr(train, 'assemble', functools.partial(assemble, devices=jax.devices()[:2]))
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def distance(ours, theirs):
    leaves = jax.tree.leaves(jax.tree.map(lambda a, b: (np.sum((a - b) ** 2), np.sum(b**2)), ours, theirs))
    return float(np.sqrt(sum(leaves[::2]) / sum(leaves[1::2])))


def test_a_width_is_reconstructed_after_training(tmp_path):
    """Widths 0.06 and 0.2 out of snapshots of 0.05 and 0.1, against a run that tracked them."""
    stored, tracked = build((0.05, 0.1), profile=(2, 3)), build((0.06, 0.2))
    train.run(stored, tmp_path / 'stored')
    train.run(tracked, tmp_path / 'tracked')
    assert list((tmp_path / 'stored' / 'profile').rglob('*.xplane.pb'))
    with Checkpoints(tmp_path / 'stored' / 'snapshots', read_only=True) as snapshots:
        assert snapshots.steps() == list(range(EVERY, STEPS + 1, EVERY))
    program, other = (assemble(made, jax.devices()[:2]) for made in (stored, tracked))
    _, first = load_params(program, tmp_path / 'stored')
    _, narrow = load_params(other, tmp_path / 'tracked')
    with Checkpoints(tmp_path / 'tracked' / 'checkpoints', read_only=True) as checkpoints:
        abstract = {'profiles': other.abstract.profiles}
        wide = checkpoints.restore(STEPS, abstract, partial=True)['profiles']['width_0.2']
    for width, theirs, bound in ((0.06, narrow, 1e-3), (0.2, wide, 1e-2)):
        _, ours = load_params(program, tmp_path / 'stored', width=width)
        for leaf, like in zip(jax.tree.leaves(ours), jax.tree.leaves(program.abstract.ema), strict=True):
            assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
        error = distance(ours, theirs)
        print(f'width {width}: {error:.2e} off, the tracked one of 0.05 {distance(first, theirs):.2e}')
        assert error < min(bound, distance(first, theirs) / 4)
    _, same = load_params(program, tmp_path / 'stored', width=0.05)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), same, first)
    with pytest.raises(ValueError, match='width of an average is 0.7'):
        load_params(program, tmp_path / 'stored', width=0.7)


def test_one_decay_has_no_widths(tmp_path):
    made = build((), steps=EVERY)
    train.run(made, tmp_path)
    assert not (tmp_path / 'snapshots').exists()
    with pytest.raises(ValueError, match="ema.profile='power'"):
        load_params(assemble(made, jax.devices()[:2]), tmp_path, width=0.1)
