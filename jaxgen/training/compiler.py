"""What the compiler is told with every program of a run, by the platform it compiles for.

Options go with the program and not through the environment, so that they hold alike on a TPU VM, for a
topology that is not there and in a saved executable. A compiler refuses what it does not know: each platform
has its own.
Gains are estimates (`--mode=plan --topology=v5e:2x4`, DiT-XL/2 at 256 px, batch 256, libtpu 0.0.51).
"""

from typing import Any

from jax.sharding import Mesh

OPTIONS: dict[str, dict[str, Any]] = {
    'tpu': {
        # Left alone, XLA turns each product with a sharded parameter into a loop over its shards, with small
        # matmuls and copies in between: 481 ms a step instead of 207, before anything else was done.
        'xla_jf_spmd_threshold_for_windowed_einsum_mib': 1_000_000,
    },
}


def options(mesh: Mesh) -> dict[str, Any] | None:
    """What `jax.jit(..., compiler_options=...)` takes for programs on a mesh."""
    return OPTIONS.get(mesh.devices.flat[0].platform)
