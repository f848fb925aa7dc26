"""Counts of operations against hand-written formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxgen.training import cost, sharding

B, L, D, H, K = 2, 16, 32, 4, 5
x_BLD = jax.ShapeDtypeStruct((B, L, D), jnp.bfloat16)
stack = {
    'mix': jax.ShapeDtypeStruct((K, D, D), jnp.float32),
    'up': jax.ShapeDtypeStruct((K, D, 4 * D), jnp.float32),
    'down': jax.ShapeDtypeStruct((K, 4 * D, D), jnp.float32),
}
layer_flops = 2 * B * L * D * (D + 8 * D) + 2 * 2 * B * L * L * D


def block(x_BLD, layer):
    heads = (x_BLD @ layer['mix'].astype(x_BLD.dtype)).reshape(B, L, H, D // H)
    scores = jax.nn.softmax(jnp.einsum('blhk,bmhk->bhlm', heads, heads))
    x_BLD = x_BLD + jnp.einsum('bhlm,bmhk->blhk', scores, heads).reshape(B, L, D)
    hidden = jax.nn.gelu(x_BLD @ layer['up'].astype(x_BLD.dtype))
    return x_BLD + hidden @ layer['down'].astype(x_BLD.dtype)


def scanned(x_BLD, stack, block=block):
    return jax.lax.scan(lambda carry, layer: (block(carry, layer), None), x_BLD, stack)[0]


def unrolled(x_BLD, stack, block=block):
    for i in range(K):
        x_BLD = block(x_BLD, jax.tree.map(lambda leaf, i=i: leaf[i], stack))
    return x_BLD


def gradient(network, block):
    def loss(stack, x_BLD):
        return network(x_BLD, stack, block).astype(jnp.float32).sum()

    return jax.value_and_grad(loss, argnums=(0, 1))


def test_scanned_and_unrolled_count_the_formula():
    assert cost.flops(scanned, x_BLD, stack) == K * layer_flops
    assert cost.flops(jax.jit(unrolled), x_BLD, stack) == K * layer_flops


@pytest.mark.parametrize('network', [scanned, unrolled])
def test_a_gradient_counts_twice_more_and_remat_the_forward_again(network):
    assert cost.flops(gradient(network, block), stack, x_BLD) == 3 * K * layer_flops
    again = cost.flops(gradient(network, jax.checkpoint(block)), stack, x_BLD)
    # The last product of a block is not computed again: nothing in the backward pass reads it.
    assert again == 4 * K * layer_flops - K * 2 * B * L * 4 * D * D


def test_what_nobody_reads_is_free():
    def network(x_BLD, stack):
        return scanned(x_BLD, stack), jnp.einsum('bld,bmd->blm', x_BLD, x_BLD)

    assert cost.flops(lambda *arguments: network(*arguments)[0], x_BLD, stack) == K * layer_flops


def test_convolutions_forward_strided_grouped_and_transposed():
    image = jax.ShapeDtypeStruct((1, 16, 16, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 8, 12), jnp.float32)
    depthwise = jax.ShapeDtypeStruct((2, 2, 1, 8), jnp.float32)
    names = ('NHWC', 'HWIO', 'NHWC')

    def convolve(x, k, stride=1, groups=1):
        return jax.lax.conv_general_dilated(
            x, k, (stride, stride), 'SAME', dimension_numbers=names, feature_group_count=groups
        )

    assert cost.flops(convolve, image, kernel) == 2 * 16 * 16 * 12 * 9 * 8
    strided = cost.flops(lambda x, k: convolve(x, k, 2), image, kernel)
    assert strided == 2 * 8 * 8 * 12 * 9 * 8
    assert cost.flops(lambda x, k: convolve(x, k, 2, 8), image, depthwise) == 2 * 8 * 8 * 8 * 4
    both = cost.flops(jax.grad(lambda x, k: convolve(x, k, 2).sum(), argnums=(0, 1)), image, kernel)
    assert both == 2 * strided


def test_branches_loops_and_custom_derivatives():
    square = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    product = 2 * 8**3

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)

    def loop(x):
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x)

    @jax.custom_vjp
    def custom(x):
        return x @ x

    custom.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))
    assert cost.flops(branch, square) == 2 * product
    assert cost.count(loop, square) == cost.Count(product, 1, product)
    assert cost.flops(custom, square) == product
    assert cost.flops(jax.grad(lambda x: custom(x).sum()), square) == 2 * product


def test_shard_map_counts_all_devices():
    mesh = sharding.make_mesh({'data': -1})
    square = jax.ShapeDtypeStruct((16, 16), jnp.float32)

    def product(a, b):
        return jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P('data'), P()), out_specs=P('data'))(a, b)

    assert cost.flops(product, square, square) == 2 * 16**3


def test_parameters_and_bytes():
    mesh = sharding.make_mesh({'fsdp': 8})
    tree = {'kernel': jax.ShapeDtypeStruct((256, 512), jnp.float32), 'bias': np.ones(512, np.float16)}
    assert cost.parameters(tree) == 256 * 512 + 512
    assert cost.bytes_per_device(tree, sharding.place(tree, (), mesh)) == 256 * 512 * 4 // 8 + 512 * 2


@pytest.mark.parametrize(
    ('number', 'text'),
    [(0, '0'), (999, '999'), (1234, '1.23 k'), (675129632, '675 M'), (999_600, '1.00 M'), (2.5e21, '2500 E')],
)
def test_human(number, text):
    assert cost.human(number) == text
