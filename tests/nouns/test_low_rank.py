"""Low-rank kernels (LoRA, arXiv:2106.09685) dropped into a trained network that knows nothing of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.generate import make_generator
from jaxgen.training.checkpoint import Checkpoints
from jaxgen.training.sharding import make_mesh
from nouns import tiny

RANK = 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
    """x (W + a b), W frozen; inside a stack all three carry the layers in front."""

    base: jax.Array
    a: jax.Array
    b: jax.Array

    def dot(self, x):
        return x @ jax.lax.stop_gradient(self.base) + x @ self.a @ self.b

    @property
    def merged(self):
        return self.base + self.a @ self.b


def adapted(params, key, scale):
    def replace(path, kernel):
        if not jax.tree_util.keystr(path, simple=True, separator='/').endswith('query/kernel'):
            return kernel
        *layers, inputs, outputs = kernel.shape
        a = jax.random.normal(key, (*layers, inputs, RANK))
        return LowRank(kernel, a, scale * jax.random.normal(key, (*layers, RANK, outputs)))

    return jax.tree_util.tree_map_with_path(replace, params)


def is_low_rank(node):
    return isinstance(node, LowRank)


def kernels(tree):
    return [node for node in jax.tree.leaves(tree, is_leaf=is_low_rank) if is_low_rank(node)]


def test_low_rank_query_kernels(tmp_path):
    made = tiny.build(
        data={'classes': None, 'captions': True},
        conditioner={'name': 'captions', 'width': 16, 'depth': 1, 'length': 8},
        model={'name': 'pixart', 'patch': 4, 'hidden': 16, 'depth': 2, 'heads': 2},
        path={},
        prediction={},
        sampler={'name': 'diffusion', 'solver': {'name': 'euler'}, 'steps': 2},
    )
    params, key = tiny.randomised(made), jax.random.key(1)
    still, moving = ({**params, 'model': adapted(params['model'], key, scale)} for scale in (0.0, 0.5))
    assert [kernel.a.shape for kernel in kernels(moving)] == [(2, 16, RANK)] * 2
    merged = jax.tree.map(lambda node: getattr(node, 'merged', node), moving, is_leaf=is_low_rank)

    generate = make_generator(made, make_mesh({}, jax.devices()[:1]), 4)
    plain, same, other, folded = (
        generate(tree, [{'caption': 'the sea'}] * 4, range(4), made.sampler.knobs()).astype(int)
        for tree in (params, still, moving, merged)
    )
    np.testing.assert_array_equal(same, plain)
    np.testing.assert_allclose(folded, other, atol=1)
    assert np.abs(other - plain).max() > 1

    x = jax.random.normal(key, (1, 8, 8, 3))

    @jax.jit
    @jax.grad
    def gradient(model):
        arrays = made.conditioner.arrays([{'caption': 'two ships'}])
        cond = made.conditioner.embed(params, arrays, jnp.zeros(1, bool), key[None])
        return (made.networks['model'](model, x, jnp.ones(1), cond)[0] ** 2).sum()

    for kernel in kernels(gradient(moving['model'])):
        assert kernel.a.any() and kernel.b.any() and not kernel.base.any()

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, moving)
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(1, moving), moving)
