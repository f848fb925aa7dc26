"""Linear: heads split and merged by the kernel's shape, dtypes, replaced kernels, initial scales."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.seeded import normal

from jaxgen.layers import linear
from jaxgen.layers.linear import Linear, xavier_fused


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Doubled:
    kernel: jax.Array

    def dot(self, x):
        return 2 * (x @ self.kernel)


def with_heads(width=6, heads=(2, 4)):
    split, merge = Linear(heads), Linear(width, merge=2)
    kernel, bias = normal('kernel', (width, 8)), normal('bias', (8,))
    return (
        split,
        {'kernel': kernel, 'bias': bias},
        merge,
        {'kernel': kernel.T, 'bias': normal('out', (width,))},
    )


def test_heads_are_split_and_merged():
    split, split_params, merge, merge_params = with_heads()
    x = normal('x', (3, 5, 6))
    heads = split.apply({'params': split_params}, x)
    expected = (x @ split_params['kernel'] + split_params['bias']).reshape(3, 5, 2, 4)
    np.testing.assert_allclose(heads, expected, atol=1e-5)
    out = merge.apply({'params': merge_params}, heads)
    expected = heads.reshape(3, 5, 8) @ merge_params['kernel'] + merge_params['bias']
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert merge.init(jax.random.key(0), heads)['params']['kernel'].shape == (8, 6)


def test_no_activation_is_transposed(monkeypatch):
    monkeypatch.setattr(linear, 'platform', lambda: 'tpu')
    split, split_params, merge, merge_params = with_heads()

    def both(x):
        return merge.apply({'params': merge_params}, split.apply({'params': split_params}, x))

    x = normal('x', (3, 5, 6))
    assert 'transpose' not in str(jax.make_jaxpr(both)(x))
    reshaped = [e for e in jax.make_jaxpr(both)(x).eqns if e.primitive.name == 'reshape']
    assert all(3 not in e.outvars[0].aval.shape for e in reshaped)  # kernels and biases, not the batch


def test_the_form_for_the_cpu_says_the_same(monkeypatch):
    split, split_params, merge, merge_params = with_heads()
    x = jnp.asarray(normal('x', (3, 5, 6)))

    def both(x, split_params, merge_params):
        y = merge.apply({'params': merge_params}, split.apply({'params': split_params}, x))
        return (y**2).sum()

    results = []
    for platform in ('cpu', 'tpu'):
        monkeypatch.setattr(linear, 'platform', lambda platform=platform: platform)
        results.append(jax.value_and_grad(both, (0, 1, 2))(x, split_params, merge_params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), *results)


def test_kernel_class_is_used_by_its_dot():
    split, params, merge, merge_params = with_heads()
    x = normal('x', (3, 5, 6))
    plain = split.apply({'params': params | {'bias': jnp.zeros(8)}}, x)
    replaced = {'kernel': Doubled(params['kernel']), 'bias': jnp.zeros(8)}
    np.testing.assert_allclose(split.apply({'params': replaced}, x), 2 * plain, atol=1e-5)
    merged = {'kernel': Doubled(merge_params['kernel']), 'bias': jnp.zeros(6)}
    expected = 2 * plain.reshape(3, 5, 8) @ merge_params['kernel']
    np.testing.assert_allclose(merge.apply({'params': merged}, plain), expected, atol=1e-4)


def test_computes_in_the_dtype_of_x_and_keeps_float32_parameters():
    split, params, _, _ = with_heads()
    x = jnp.asarray(normal('x', (3, 6)), jnp.bfloat16)
    assert split.apply({'params': params}, x).dtype == jnp.bfloat16
    assert split.init(jax.random.key(0), x)['params']['kernel'].dtype == jnp.float32


def test_misshapen_kernel_is_refused():
    split, params, _, _ = with_heads()
    with pytest.raises(ValueError, match=r'\(6, 8\).*\(5, 8\)'):
        split.apply({'params': params}, normal('x', (3, 5)))


def test_fused_xavier_is_that_of_the_whole_projection():
    kernel = np.asarray(xavier_fused(3)(jax.random.key(0), (64, 64)))
    bound = np.sqrt(6 / (64 + 3 * 64))
    assert 0.98 * bound < np.abs(kernel).max() <= bound
