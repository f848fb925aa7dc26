"""Eight CPU devices for the sharding tests, and a compilation cache that all the workers share."""

import gc
import os
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
_FLAGS = (
    '--xla_force_host_platform_device_count=8',
    '--xla_cpu_collective_call_terminate_timeout_seconds=600',
    # Tests compile far more than they compute.
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
)
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_FLAGS]).strip()
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.join(tempfile.gettempdir(), 'jaxgen_test_cache'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import jax  # noqa: E402  (after what it reads of the environment)
import pytest  # noqa: E402
from memory import anonymous  # noqa: E402

LARGE = 2 * 10**9


@pytest.fixture(scope='module', autouse=True)
def lean():
    """Compiled programs are let go between modules once a worker has grown large."""
    yield
    if anonymous() > LARGE:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope='module')
def split_small():
    """Tiny arrays are split as large ones are, and programs compiled without optimisation."""
    from jaxgen.training import sharding

    jax.config.update('jax_disable_most_optimizations', True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, 'SMALL', 2**8)
        yield
    jax.config.update('jax_disable_most_optimizations', False)
