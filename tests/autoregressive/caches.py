"""What a cache of keys and values saves: one picture with guidance, with it and without.

`python tests/autoregressive/caches.py CONFIG[:VARIANT] [PICTURES]`, as configs/var_imagenet.py:d16: counted
operations, memory of the cache, and seconds of the fastest of three calls here, on random weights.
"""

import sys
import time

import jax

from jaxgen import config, recipe
from jaxgen.conditioning.request import Request
from jaxgen.training import cost

ROUNDS = 3


def main(file, count=1):
    """Print a line for each."""
    for cache in (True, False):
        # float32, as a CPU computes it fastest.
        overrides = (f'sampler.order.cache={cache}', 'model.dtype=float32', 'tokenizer.dtype=float32')
        built = recipe.build(config.load(file, overrides))
        params = jax.jit(built.init)(jax.random.key(0))
        label = jax.numpy.arange(count) % built.conditioner.classes
        cond, null = ({'label': label, 'drop': jax.numpy.full(count, drop)} for drop in (False, True))
        request = Request(cond, null, jax.random.split(jax.random.key(1), count))
        given = params, request, built.sampler.knobs()
        sample = jax.jit(built.sampler.sample)
        flops = cost.flops(sample, *given) / count
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(built.sampler.held(count)))
        seconds = []
        for _ in range(1 + ROUNDS):
            began = time.perf_counter()
            jax.block_until_ready(sample(*given))
            seconds.append(time.perf_counter() - began)
        which = 'with' if cache else 'without'
        print(f'{which}: {flops / 1e9:.3g} GFLOP a picture, {held / 2**20:.3g} MiB held', end=', ')
        print(f'{min(seconds[1:]) / count:.3g} s a picture', flush=True)


if __name__ == '__main__':
    main(sys.argv[1], *map(int, sys.argv[2:]))
