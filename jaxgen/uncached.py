"""Compiling without jax's persistent cache, for programs that it must neither give nor keep.

What was compiled for chips that are not there cannot be read back from it; a CPU's program that was read from
it is not whole when it is written again; and what is timed must not come from a disk.
"""

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """While it is entered, nothing is read from the cache and nothing put into it."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update('jax_enable_compilation_cache', before)
        compilation_cache.reset_cache()
