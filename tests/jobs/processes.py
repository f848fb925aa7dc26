"""One of two processes of a run, each with two devices and a disk of its own: NUMBER PORT WEIGHTS FOLDER."""

import os
import pathlib
import shutil
import sys

number, port, weights, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3], pathlib.Path(sys.argv[4])
home = folder / f'home{number}'
os.environ.update(HOME=str(home), XLA_FLAGS='--xla_force_host_platform_device_count=2', JAX_PLATFORMS='cpu')

import jax  # noqa: E402

jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.config.update('jax_disable_most_optimizations', True)
jax.distributed.initialize(f'localhost:{port}', 2, number)

from jaxgen import pretrained, recipe  # noqa: E402
from jaxgen.jobs import convert, sample  # noqa: E402

overrides = ["mesh={'fsdp': -1}", 'train.batch=4', 'train.sample_batch=4']
built = recipe.build(pretrained.configured({}, weights, overrides))
convert.run(built, str(folder / 'none'), weights=weights, export=str(folder / 'back'))
convert.run(built, str(folder / 'run'), weights=weights)
sample.run(built, str(folder / 'drawn'), prompt=['a cat'], weights=weights)
if number:
    shutil.rmtree(home / '.cache/jaxgen/features')  # what the other one still finds
sample.run(built, str(folder / 'drawn'), prompt=['a cat', 'a dog'], weights=weights)
