"""The encoder and decoder under other bottlenecks than a Gaussian's, and what their parts must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.seeded import normal, relative_error

from jaxgen.layers.convolution import Convolution
from jaxgen.layers.groupnorm import GroupNorm
from jaxgen.tokenizers import convolutional
from jaxgen.tokenizers.convolutional import Decoder, Encoder, MapAttention


def test_any_channels_and_attention_where_asked():
    settings = {'widths': (8, 16), 'blocks': 2, 'groups': 4, 'attention': (1,), 'middle_attention': False}
    encoder, decoder = Encoder(channels=5, **settings), Decoder(**settings)
    x, z = jnp.zeros((2, 8, 12, 3)), jnp.zeros((2, 4, 6, 5))
    made, by_encoder = jax.eval_shape(encoder.init_with_output, jax.random.key(0), x)
    assert made.shape == z.shape
    made, by_decoder = jax.eval_shape(decoder.init_with_output, jax.random.key(0), z)
    assert made.shape == x.shape

    def attentions(params):
        paths = [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in _leaves(params)]
        return sorted({path.rpartition('/query')[0] for path in paths if '/query/' in path})

    assert attentions(by_encoder) == [f'params/down_1/attention_{i}' for i in range(2)]
    # One block a level more than the encoder.
    assert attentions(by_decoder) == [f'params/up_1/attention_{i}' for i in range(3)]


def _leaves(params):
    return jax.tree_util.tree_leaves_with_path(params)


def test_attention_in_pieces_is_the_same(monkeypatch):
    attention, x = MapAttention(groups=2), normal('x', (2, 6, 10, 8))
    params = attention.init(jax.random.key(0), x)

    def run(scores):
        monkeypatch.setattr(convolutional, 'SCORES', scores)
        function = jax.value_and_grad(lambda params, x: (attention.apply(params, x) ** 2).sum(), (0, 1))
        text = str(jax.make_jaxpr(function)(params, x))
        return text.count(' scan['), jax.jit(function)(params, x)

    (loops, whole), (loops_in_pieces, pieces) = run(2 * 60**2), run(1000)
    assert loops == 0 and loops_in_pieces > 0
    for ours, theirs in zip(jax.tree.leaves(pieces), jax.tree.leaves(whole)):
        assert np.abs(ours - theirs).max() <= 1e-4 * max(np.abs(theirs).max(), 1)


def test_group_norm_statistics_are_those_of_the_group():
    # Offset by far more than it varies: the variance as a difference of squares would be lost.
    x = (1000 + normal('x', (2, 64, 64, 8))).astype(np.float32)
    norm = GroupNorm(groups=4, epsilon=1e-6)
    params = norm.init(jax.random.key(0), x)
    ours = norm.apply(params, x)(x)
    groups = x.astype(np.float64).reshape(2, -1, 4, 2)
    mean, deviation = groups.mean((1, 3), keepdims=True), groups.std((1, 3), keepdims=True)
    assert relative_error(ours, ((groups - mean) / deviation).reshape(x.shape)) <= 1e-4
    with pytest.raises(ValueError, match='8 channels do not fall into 3 groups'):
        GroupNorm(groups=3).init(jax.random.key(0), x)


@pytest.mark.parametrize('resample', ['none', 'down', 'up'])
@pytest.mark.parametrize('rows', [1, 7])
def test_strips_give_the_same_convolution(resample, rows):
    x, shifted = normal('x', (2, rows + 1, 9, 3)), lambda x: x + 1  # padding must stay zero
    whole = Convolution(4, resample)
    params = whole.init(jax.random.key(0), x)
    y = whole.apply(params, x, shifted)
    assert y.shape == {'none': x.shape, 'down': (2, (rows + 1) // 2, 4, 0), 'up': (2, 2 * rows + 2, 18, 0)}[
        resample
    ][:3] + (4,)
    for strips in (2, 3, 100):
        ours = Convolution(4, resample, strips).apply(params, x, shifted)
        assert relative_error(ours, y) <= 1e-5
