"""Prints the cycles of one head of the flash kernels, for jaxgen/estimate/bundles.py (needs libtpu).

    python tests/kernels/table.py v5e:2x2 1024,1024,72 256,256,72

takes queries, keys, width. Each is compiled for two and for four times as many heads as a program has, and
the difference is counted: what starts a kernel is not. Arrays fit VMEM: no wait for HBM is in it.
"""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxgen.estimate.bundles import profiled
from jaxgen.kernels.flash import flash_blocks
from jaxgen.kernels.flash_backward import flash_backward
from jaxgen.kernels.flash_forward import flash_forward, heads_together


def shapes(heads: int, queries: int, keys: int, width: int) -> tuple:
    """Queries, keys and sums as the kernels take them."""
    q = jax.ShapeDtypeStruct((1, heads, width, queries), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, heads, width, keys), jnp.bfloat16)
    return q, k, jax.ShapeDtypeStruct((1, heads, 1, queries), jnp.float32)


def forward(heads: int, queries: int, keys: int, width: int) -> tuple:
    """A call of the forward kernel, and its shapes."""
    q, k, _ = shapes(heads, queries, keys, width)
    blocks = flash_blocks(queries, keys)
    return lambda q, k, v: flash_forward(q, k, v, None, *blocks, False), (q, k, k)


def backward(heads: int, queries: int, keys: int, width: int) -> tuple:
    """A call of the backward kernel, and its shapes."""
    q, k, sums = shapes(heads, queries, keys, width)
    blocks = flash_blocks(queries, keys)

    def call(q, k, v, y, sums):
        return flash_backward(q, k, v, None, y, sums, y, sums, *blocks, False)

    return call, (q, k, k, q, sums)


def main(slice_name: str, *given: str) -> None:
    """Print a row for every shape and way."""
    os.environ['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])
    for each in given:
        queries, keys, width = map(int, each.split(','))
        query_block, key_block = flash_blocks(queries, keys)
        group = heads_together(16, query_block * keys) if keys == key_block else 1
        for way in ('forward', 'backward'):
            few, many = (
                sum(profiled(slice_name, f'table:{way}', heads, queries, keys, width, only='flash').values())
                for heads in (2 * group, 4 * group)
            )
            cycles = (many - few) / (2 * group)
            print(f'{slice_name} {way} ({queries}, {keys}, {width}): {cycles:.0f} cycles a head')


if __name__ == '__main__':
    main(*sys.argv[1:])
