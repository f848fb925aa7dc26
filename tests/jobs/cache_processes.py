"""One of two processes that make a cache together, each with two devices: NUMBER PORT FOLDER."""

import os
import sys

number, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ.update(XLA_FLAGS='--xla_force_host_platform_device_count=2', JAX_PLATFORMS='cpu')

import jax  # noqa: E402

jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.config.update('jax_disable_most_optimizations', True)
jax.distributed.initialize(f'localhost:{port}', 2, number)

from test_cache import EXACT, sections  # noqa: E402

from jaxgen import recipe  # noqa: E402
from jaxgen.jobs import cache  # noqa: E402

cache.MOST = 3
cache.run(recipe.build(sections('text', **EXACT)), folder)
