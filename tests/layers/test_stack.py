"""Stacks scanned, unrolled, recomputed, cut otherwise and reached into, against a plain loop over layers."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden.seeded import normal
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxgen.layers.linear import Linear
from jaxgen.layers.mlp import Mlp
from jaxgen.layers.segment import REMAT, Segment, constrain, expose
from jaxgen.layers.stack import Stack, canonical, recut

DEPTH, WIDTH = 5, 8
X = normal('x', (2, 6, WIDTH))
C = normal('c', (2, 1, WIDTH))


class Block(nn.Module):
    """A small block with what real ones have; a `wide` one has other parameters."""

    wide: bool = False

    @nn.compact
    def __call__(self, x_BLD, c_B1D, *, per_layer=None, train=False):
        h = jnp.tanh(Linear(WIDTH, name='mix')(x_BLD + c_B1D))
        expose(self, 'mix', h)
        x_BLD = x_BLD + h
        h = Mlp((3 if self.wide else 2) * WIDTH, WIDTH, name='mlp')(x_BLD)
        return x_BLD + h * (1.0 if per_layer is None else per_layer['gain'])


def stack_of(*lengths, wide=(), **options):
    segments = (Segment(Block(i in wide, parent=None), length) for i, length in enumerate(lengths))
    return Stack(tuple(segments), **options)


@pytest.fixture(scope='module')
def params():
    return jax.tree.map(np.asarray, jax.jit(stack_of(DEPTH).init)(jax.random.key(0), X, C)['params'])


def run(params, *lengths, wide=(), options=None, capture=(), **inputs):
    stack = stack_of(*(lengths or (DEPTH,)), wide=wide, **(options or {}))
    apply = jax.jit(lambda params, inputs: stack.apply({'params': params}, X, C, capture=capture, **inputs))
    return apply(params, inputs)


@jax.jit
def one_layer(params, x, per_layer):
    return Block().apply({'params': params}, x, C, per_layer=per_layer, mutable=['features'])


def layers_by_hand(params, reuse=(), deltas=None, residual=None, gain=None):
    """[(output, delta, mix)] of each layer, by one apply after another."""
    x, results = jnp.asarray(X), []
    for i in range(DEPTH):
        layer = jax.tree.map(lambda a, i=i: a[i], params['stack']['0'])
        per_layer = None if gain is None else {'gain': gain[i]}
        y, state = one_layer(layer, x, per_layer)
        delta = deltas[i] if i in reuse else y - x
        x = x + delta + (0 if residual is None else residual[i])
        results.append((x, delta, state['features']['mix']))
    return results


def close(a, b, tolerance=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance), a, b)


@pytest.mark.parametrize('scan', [True, 2, False])
def test_output_is_the_layers_one_after_another(params, scan):
    assert jax.tree.leaves(params)[0].shape[0] == DEPTH
    out, features, memory = run(params, options={'scan': scan})
    close(out, layers_by_hand(params)[-1][0])
    assert features == {} and memory is None
    first, second = (jax.tree.map(lambda a, i=i: a[i], params['stack']['0']['mlp']) for i in (0, 1))
    assert np.abs(first['up']['kernel'] - second['up']['kernel']).max() > 0.1  # a draw of its own a layer


@pytest.mark.parametrize(
    ('remat', 'scan'), [*((remat, True) for remat in REMAT), ('named', 2), ('named', False), ('full', False)]
)
def test_remat_leaves_gradients_alone(params, remat, scan):
    def gradients(**options):
        stack = stack_of(DEPTH, **options)

        def loss(params, x, c):
            return jnp.sum(jnp.sin(stack.apply({'params': params}, x, c)[0]))

        return jax.jit(jax.grad(loss, (0, 1, 2)))(params, X, C)

    close(gradients(remat=remat, scan=scan), gradients(scan=False), 1e-5)


def test_remat_saves_what_its_name_says(params):
    def saved(remat):
        stack = stack_of(DEPTH, remat=remat, scan=False)
        _, backward = jax.vjp(lambda p: stack.apply({'params': p}, X, C)[0], params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert saved('full') < saved('named') < saved('none')
    with pytest.raises(ValueError, match='everything'):
        run(params, options={'remat': 'everything'})


@pytest.mark.parametrize('lengths', [(2, 3), (1, 1, 3), (1,) * DEPTH])
def test_recut_is_the_identity_on_parameters_and_outputs(params, lengths):
    cut = recut(params, lengths)
    assert [
        leaf.shape[0]
        for leaf in jax.tree.leaves({k: v['mlp']['up']['bias'] for k, v in cut['stack'].items()})
    ] == list(lengths)
    close(run(cut, *lengths)[0], run(params)[0])
    for back in (canonical(cut), recut(cut, (DEPTH,)), recut(cut, params)):
        jax.tree.map(np.testing.assert_array_equal, back, params)


def test_a_draw_does_not_depend_on_the_cut(params):
    drawn = jax.jit(stack_of(2, 3).init)(jax.random.key(0), X, C)['params']
    close(canonical(jax.tree.map(np.asarray, drawn)), params, 0)


def test_recut_reaches_into_optimizer_states_and_shapes(params):
    state = optax.chain(
        optax.clip(1.0), optax.masked(optax.adam(1e-3), lambda p: jax.tree.map(lambda a: a.ndim > 2, p))
    )
    tree = {
        'params': {'model': {'blocks': params}},
        'state': state.init({'model': {'blocks': params}}),
        'step': jnp.int32(3),
    }
    cut = recut(tree, [3, 2])
    assert (
        cut['state'][1].inner_state[0].mu['model']['blocks']['stack']['1']['mlp']['up']['kernel'].shape[0]
        == 2
    )
    jax.tree.map(np.testing.assert_array_equal, recut(cut, tree), tree)
    jax.tree.map(np.testing.assert_array_equal, canonical(cut), tree)
    shapes = jax.eval_shape(lambda: cut)
    assert jax.tree.map(lambda a: a.shape, canonical(shapes)) == jax.tree.map(lambda a: a.shape, tree)
    assert jax.tree.structure(recut(canonical(shapes), cut)) == jax.tree.structure(cut)


def test_unlike_segments_stay_apart():
    stack = stack_of(2, 2, 1, wide=(2,))
    shapes = jax.eval_shape(stack.init, jax.random.key(0), X, C)['params']
    params = jax.tree.map(lambda leaf: normal('wide', leaf.shape), shapes)
    joined = canonical(params)
    assert sorted(joined['stack']) == ['0', '1'] and joined['stack']['0']['mlp']['up']['bias'].shape == (
        4,
        16,
    )
    jax.tree.map(np.testing.assert_array_equal, recut(joined, params), params)
    with pytest.raises(ValueError, match='layers 3 to 4'):
        recut(params, (3, 2))
    with pytest.raises(ValueError, match='5 layers'):
        recut(params, (3, 3))


def test_parameters_cut_otherwise_are_refused(params):
    with pytest.raises(ValueError, match=r'\[5\].*\[2, 3\]'):
        run(params, 2, 3)


@pytest.mark.parametrize('options', [{'scan': True}, {'scan': False}, {'remat': 'named'}])
@pytest.mark.parametrize('lengths', [(DEPTH,), (2, 3)])
def test_captures(params, lengths, options):
    names = ('3.out', '*.delta', '1.mix', '*.mix', '0.delta', '*.out')
    _, features, _ = run(recut(params, lengths), *lengths, options=options, capture=names)
    outs, deltas, mixes = (jnp.stack(values) for values in zip(*layers_by_hand(params)))
    expected = (outs[3], deltas, mixes[1], mixes, deltas[0], outs)
    assert set(features) == set(names)
    for name, value in zip(names, expected):
        close(features[name], value)


def test_gradients_flow_through_a_capture(params):
    def loss(params, scan):
        _, features, _ = stack_of(DEPTH, scan=scan).apply({'params': params}, X, C, capture=('2.mix',))
        return jnp.sum(jnp.sin(features['2.mix']))

    scanned, unrolled = (jax.jit(jax.grad(loss), static_argnums=1)(params, scan) for scan in (True, False))
    close(scanned, unrolled, 1e-5)
    by_layer = jnp.abs(scanned['stack']['0']['mix']['kernel']).sum((1, 2))
    assert (by_layer[:3] > 0).all() and (by_layer[3:] == 0).all()


def test_one_captured_layer_keeps_no_other():
    stack, long = stack_of(64), 128
    x = jax.ShapeDtypeStruct((2, long, WIDTH), jnp.float32)
    params = jax.eval_shape(stack.init, jax.random.key(0), X, C)

    def peak(capture):
        compiled = jax.jit(lambda p, x: stack.apply(p, x, C, capture=capture)[:2]).lower(params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one_layer = 2 * long * WIDTH * 4
    assert peak(('7.out',)) - peak(()) < 8 * one_layer


@pytest.mark.parametrize('name', ['out', '5.out', '-1.out', '*.', 'a.out', '2.nothing', '*.nothing'])
def test_unknown_captures_are_refused(params, name):
    with pytest.raises(ValueError, match='cannot capture'):
        run(params, capture=(name,))
    if 'nothing' in name:
        with pytest.raises(ValueError, match="'delta', 'mix', 'out'"):
            run(params, capture=(name,))


@pytest.mark.parametrize('lengths', [(DEPTH,), (2, 3)])
def test_reuse_skips_layers(params, lengths):
    cut = recut(params, lengths)
    _, _, memory = run(cut, *lengths, memory={})
    close(memory['delta'], jnp.stack([delta for _, delta, _ in layers_by_hand(params)]))
    held = {'delta': jnp.asarray(normal('held', memory['delta'].shape))}
    reuse = np.array([False, True, True, False, True])
    out, _, new = run(cut, *lengths, per_layer={'reuse': reuse}, memory=held)
    expected = layers_by_hand(params, np.flatnonzero(reuse), held['delta'])
    close(out, expected[-1][0])
    close(new['delta'], jnp.stack([delta for _, delta, _ in expected]))
    # A layer that is skipped is not computed: its parameters may be anything.
    spoilt = jax.tree.map(lambda a: jnp.where(reuse.reshape(-1, *[1] * (a.ndim - 1)), jnp.nan, a), params)
    close(run(recut(spoilt, lengths), *lengths, per_layer={'reuse': reuse}, memory=held)[0], out, 0)


def test_reuse_needs_memory_and_hides_inner_sites(params):
    reuse, held = np.zeros(DEPTH, bool), {'delta': np.zeros((DEPTH, *X.shape), np.float32)}
    with pytest.raises(ValueError, match='memory'):
        run(params, per_layer={'reuse': reuse})
    with pytest.raises(ValueError, match='reused'):
        run(params, per_layer={'reuse': reuse}, memory=held, capture=('0.mix',))
    with pytest.raises(ValueError, match='per_layer/reuse'):
        run(params, per_layer={'reuse': reuse[1:]}, memory=held)


@pytest.mark.parametrize('lengths', [(DEPTH,), (2, 3)])
def test_residual_and_what_the_block_reads(params, lengths):
    residual, gain = normal('residual', (DEPTH, *X.shape)), normal('gain', (DEPTH,))
    out, _, _ = run(recut(params, lengths), *lengths, per_layer={'residual': residual, 'gain': gain})
    close(out, layers_by_hand(params, residual=residual, gain=gain)[-1][0], 1e-5)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class LowRank:
    """A kernel class as an adapter would bring it."""

    base: jax.Array
    down: jax.Array
    up: jax.Array

    def dot(self, x):
        return x @ self.base + (x @ self.down) @ self.up


@pytest.mark.parametrize('scan', [True, False])
def test_a_kernel_class_in_place_of_an_array(params, scan):
    def adapt(path, kernel):
        if path[-1].key != 'kernel':
            return kernel
        inputs, outputs = kernel.shape[1:]
        down, up = normal('down', (DEPTH, inputs, 2)), normal('up', (DEPTH, 2, outputs))
        return LowRank(kernel, 0.1 * down, 0.1 * up)

    adapted = jax.tree_util.tree_map_with_path(adapt, params)
    merged = jax.tree.map(
        lambda k: k.base + jnp.einsum('lir,lro->lio', k.down, k.up) if isinstance(k, LowRank) else k,
        adapted,
        is_leaf=lambda k: isinstance(k, LowRank),
    )
    out, _, _ = run(adapted, options={'scan': scan})
    close(out, run(merged)[0], 1e-5)
    assert np.abs(out - run(params)[0]).max() > 1e-2
    close(run(recut(adapted, (2, 3)), 2, 3)[0], out, 1e-5)


def test_constrain_places_activations_on_a_mesh_and_is_nothing_without():
    x = jnp.zeros((8, 4, 2))
    assert constrain(x) is x
    names = ('data', 'fsdp', 'tensor', 'sequence')
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 1, 2), names, axis_types=(AxisType.Auto,) * 4)
    with jax.set_mesh(mesh):
        placed = jax.jit(lambda x: constrain(x * 2))
        assert placed(x).sharding.spec == PartitionSpec(('data', 'fsdp'), 'sequence')
        assert placed(x[:2]).sharding.spec[0] in ('data', ('data',))  # only the axes that divide
        assert constrain(x[:3, :3]).shape == (3, 3, 2)


def test_a_sharded_stack_computes_the_same(params):
    mesh = Mesh(
        np.array(jax.devices()[:4]).reshape(2, 2), ('data', 'sequence'), axis_types=(AxisType.Auto,) * 2
    )
    expected = run(params)[0]
    with jax.set_mesh(mesh):
        out = run(params, options={'remat': 'dots'})[0]
    assert len(out.sharding.device_set) == 4
    close(np.asarray(out), np.asarray(expected), 1e-5)
