"""What the compiler is told with every program of a run, by what it compiles for.

Options go with the program and not through the environment, so that they hold alike on a TPU VM, for a
topology that is not there and in a saved executable. A compiler refuses what it does not know: each platform
and each generation has its own, and a run may add some (`train.compiler`).
Gains are estimates (`--mode=plan --topology=v5e:2x4`, DiT-XL/2 at 256 px, batch 256, libtpu 0.0.51).
"""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

# By platform and by `device_kind`.
OPTIONS: dict[str, dict[str, Any]] = {
    'tpu': {
        # Left alone, XLA turns each product with a sharded parameter into a loop over its shards, with small
        # matmuls and copies in between: 481 ms a step instead of 207, before anything else was done.
        'xla_jf_spmd_threshold_for_windowed_einsum_mib': 1_000_000,
        # What a program says is bfloat16 stays so, and is not kept and sent in float32: 167 ms for 170.
        'xla_allow_excess_precision': False,
    },
    # Gradients are summed beside the core, each as soon as it is there, small ones together: 162 ms for 167.
    # Other generations' compilers refuse it.
    'TPU v5 lite': {
        'xla_enable_async_all_reduce': True,
        'xla_enable_async_reduce_scatter_fusion': True,
        'xla_tpu_enable_async_collective_fusion_fuse_all_reduce': True,
        'xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter': True,
        'xla_jf_crs_combiner_threshold_in_bytes': 2_000_000,
        'xla_tpu_scoped_vmem_limit_kib': 32 * 1024,
    },
}


def options(mesh: Mesh, more: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """What `jax.jit(..., compiler_options=...)` takes for programs on a mesh."""
    device = mesh.devices.flat[0]
    known = OPTIONS.get(device.platform, {}), OPTIONS.get(device.device_kind, {}), more or {}
    return {name: value for each in known for name, value in each.items()} or None
