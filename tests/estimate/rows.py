"""Rows of measurements made before this estimator was written, rebuilt, and what it makes of them.

    python tests/estimate/rows.py                     # matmuls and halves of a block: some minutes
    python tests/estimate/rows.py network sampling    # DiT-XL/2 whole, on one chip

The forms are plain jnp: they are what was measured, not what the library does now. Needs libtpu. DiT-XL/2
at 256 tokens, 32 images on one v5e chip, bfloat16; figures are percent of the chip's peak, without
recomputing.
"""

import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxgen import estimate
from jaxgen.estimate import topology
from jaxgen.models import dit
from jaxgen.training import cost
from jaxgen.training.sharding import make_mesh
from jaxgen.uncached import uncached

# B batch, L tokens, D width, H heads, K width of a head
IMAGES, TOKENS, WIDTH, HEADS = 32, 256, 1152, 16


def compiled(function: Callable, arguments: tuple, where: str = 'v5e:1x1'):
    """A function compiled for the first chip of a slice; arguments are shapes."""
    mesh = make_mesh({}, topology.devices(where)[:1])
    place = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments)
    with uncached(), jax.set_mesh(mesh):
        return jax.jit(function).lower(*placed).compile()


def measured(function: Callable, arguments: tuple, where: str = 'v5e:1x1', flops: float | None = None):
    """The estimate of one call."""
    flops = flops or cost.flops(function, *arguments)
    return estimate.estimate(compiled(function, arguments, where), where, flops)


def shape(*dims: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype)


def matmul(where: str, size: int = 8192):
    """A square matmul."""
    return measured(jnp.matmul, (shape(size, size), shape(size, size)), where)


def modulated(x_BLD: jax.Array, parts_B3D: jax.Array) -> jax.Array:
    x = x_BLD.astype(jnp.float32)
    normed = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
    return (normed * (1 + parts_B3D[:, 1, None]) + parts_B3D[:, 0, None]).astype(x_BLD.dtype)


def softmax(scores: jax.Array, form: str) -> jax.Array:
    """Over the last axis: all in float32, or only its statistics."""
    if form == 'float32':
        return jax.nn.softmax(scores.astype(jnp.float32), -1).astype(jnp.bfloat16)
    raised = jnp.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.astype(jnp.float32).sum(-1, keepdims=True).astype(scores.dtype)


def attention_half(projection: str, layout: str, form: str) -> tuple[Callable, tuple]:
    """Norm, modulation, q, k, v, attention, projection; `layout` is that of the heads."""
    head = WIDTH // HEADS
    kernels = shape(3, WIDTH, HEADS, head), shape(HEADS, head, WIDTH)

    def half(kernels, x_BLD, parts_B3D):
        h_BLD = modulated(x_BLD, parts_B3D)
        if projection == 'separate':
            q, k, v = (jnp.einsum('bld,dhk->blhk', h_BLD, kernel) for kernel in kernels[0])
        else:
            q, k, v = jnp.moveaxis(jnp.einsum('bld,cdhk->blchk', h_BLD, kernels[0]), 2, 0)
        if form == 'library':
            y = jax.nn.dot_product_attention(q, k, v)
        elif layout == 'BHLK':
            q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
            weights = softmax(jnp.einsum('bhlk,bhmk->bhlm', q, k) * head**-0.5, form)
            y = jnp.einsum('bhlm,bhmk->bhlk', weights, v).swapaxes(1, 2)
        else:
            weights = softmax(jnp.einsum('blhk,bmhk->bhlm', q, k) * head**-0.5, form)
            y = jnp.einsum('bhlm,bmhk->blhk', weights, v)
        return x_BLD + parts_B3D[:, 2, None] * jnp.einsum('blhk,hkd->bld', y, kernels[1])

    return half, (kernels, shape(IMAGES, TOKENS, WIDTH), shape(IMAGES, 3, WIDTH))


def mlp_half(activation: Callable) -> tuple[Callable, tuple]:
    """Norm, modulation, MLP."""

    def half(kernels, x_BLD, parts_B3D):
        (up, up_bias), (down, down_bias) = kernels
        hidden = activation(modulated(x_BLD, parts_B3D) @ up + up_bias)
        return x_BLD + parts_B3D[:, 2, None] * (hidden @ down + down_bias)

    kernels = (
        (shape(WIDTH, 4 * WIDTH), shape(4 * WIDTH)),
        (shape(4 * WIDTH, WIDTH), shape(WIDTH)),
    )
    return half, (kernels, shape(IMAGES, TOKENS, WIDTH), shape(IMAGES, 3, WIDTH))


def backward(function: Callable, arguments: tuple) -> tuple[Callable, tuple]:
    """Forward and backward."""
    out = jax.eval_shape(function, *arguments)
    return lambda grad, *given: jax.vjp(function, *given)[1](grad), (out, *arguments)


def network(remat: str):
    """Gradients of DiT-XL/2 by its parameters; operations are those without remat."""

    def gradient(remat: str) -> tuple[Callable, tuple]:
        module = dit.build('XL', dtype='bfloat16', remat=remat)
        x, t = shape(IMAGES, 32, 32, 4, dtype=jnp.float32), shape(IMAGES, dtype=jnp.float32)
        cond = {'label': shape(IMAGES, dtype=jnp.int32), 'drop': shape(IMAGES, dtype=jnp.bool_)}
        params = jax.eval_shape(module.init, jax.eval_shape(lambda: jax.random.key(0)), x, t, cond)

        def loss(params, x, t, cond):
            return (module.apply(params, x, t, cond)[0] ** 2).mean()

        return jax.grad(loss), (params, x, t, cond)

    function, arguments = gradient(remat)
    return measured(function, arguments, flops=cost.flops(*_call(gradient('none'))))


def _call(made: tuple[Callable, tuple]) -> tuple:
    return made[0], *made[1]


def sampling(steps: int = 50, images: int = 8):
    """Fifty steps of DiT-XL/2 with guidance: twice the batch, weights in bfloat16."""
    module = dit.build('XL', dtype='bfloat16')
    x, t = shape(2 * images, 32, 32, 4, dtype=jnp.float32), shape(2 * images, dtype=jnp.float32)
    cond = {'label': shape(2 * images, dtype=jnp.int32), 'drop': shape(2 * images, dtype=jnp.bool_)}
    params = jax.eval_shape(module.init, jax.eval_shape(lambda: jax.random.key(0)), x, t, cond)
    params = jax.tree.map(lambda a: shape(*a.shape), params)

    def draw(params, x, cond):
        def step(i, x):
            out = module.apply(params, jnp.concatenate([x, x]), jnp.full(2 * images, i, jnp.float32), cond)[0]
            noise, null = jnp.split(out[..., :4], 2)
            return x - 0.02 * (null + 4 * (noise - null))

        return jax.lax.fori_loop(0, steps, step, x)

    return measured(draw, (params, shape(images, 32, 32, 4, dtype=jnp.float32), cond))


FORMS = (  # of attention: what it is called there, the form, and percent forward, forward and backward
    ('fused, (B,H,L,K), f32 softmax', ('fused', 'BHLK', 'float32'), 35, 41),
    ('jax.nn.dot_product_attention', ('fused', 'BLHK', 'library'), 37, 46),
    ('separate, (B,L,H,K), f32 softmax', ('separate', 'BLHK', 'float32'), 76, 55),
    ('fused, (B,L,H,K), bf16 scores', ('fused', 'BLHK', 'statistics'), 64, 66),
    ('separate, (B,L,H,K), bf16 scores', ('separate', 'BLHK', 'statistics'), 81, None),
)
ACTIVATIONS = (
    ('tanh GELU', jax.nn.gelu, 88),
    ('erf GELU', lambda x: jax.nn.gelu(x, approximate=False), 57),
    ('squared ReLU', lambda x: jnp.square(jax.nn.relu(x)), 94),
)


def matmul_rows():
    for where in ('v5e:1x1', 'v5p:2x2x1', 'v6e:1x1'):
        yield f'8192-cube matmul, {where}', 100, matmul(where)


def half_rows():
    for name, form, forward, both in FORMS:
        made = attention_half(*form)
        yield f'attention {name}, forward', forward, measured(*made)
        yield f'attention {name}, both', both, measured(*backward(*made))
    for name, activation, forward in ACTIVATIONS:
        made = mlp_half(activation)
        yield f'MLP {name}, forward', forward, measured(*made)
        yield f'MLP {name}, both', None, measured(*backward(*made))


def network_rows():
    for remat, share in (('full', 58), ('dots', 67), ('named', 71)):
        yield f'DiT-XL/2, 32 images, remat {remat}', share, network(remat)


def sampling_rows():
    yield 'DiT-XL/2, 8 images, 50 steps (1.21 s)', 80, sampling()


ROWS = {'matmul': matmul_rows, 'half': half_rows, 'network': network_rows, 'sampling': sampling_rows}


def main(names: list[str]) -> None:
    jax.config.update('jax_platforms', 'cpu')
    print(f'jax {jax.__version__}, libtpu {topology.version()}')
    print(f'{"":50}  page  ours   seconds  matmul vector memory   GB')
    for name in names or ('matmul', 'half'):
        for label, page, found in ROWS[name]():
            parts = (getattr(found, part) / found.seconds for part in ('matmul', 'vector', 'memory'))
            shares = ' '.join(f'{100 * part:5.0f}%' for part in parts)
            print(
                f'{label:50} {page or "-":>4}% {100 * found.mfu:4.1f}% {found.seconds:9.5f}  {shares} '
                f'{found.peak / 1e9:5.1f}',
                flush=True,
            )


if __name__ == '__main__':
    main(sys.argv[1:])
