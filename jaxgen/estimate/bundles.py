"""Cycles of Pallas kernels, from the compiler's own final bundles.

A Pallas call carries no estimate in the compiled program. libtpu can write down what it makes of one
(`--xla_jf_dump_static_llo_profile_to`): the final bundles run by its own evaluator, loops, predicates and the
waits for the units included. That is set when libtpu is loaded and ends the process, so `profiled` compiles a
kernel alone in a process of its own, and what was found so is kept below (tests/kernels/table.py makes it).
"""

import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from jaxgen.estimate.chips import Chip

FLASH = re.compile(r'flash_(forward|backward)_b(\d+)_h(\d+)_q(\d+)_k(\d+)_w(\d+)(_masked)?')
# Cycles of one head, by chip and way: {(queries, keys, width): cycles}; libtpu 0.0.51.
CYCLES: dict[tuple[str, str], dict[tuple[int, int, int], float]] = {
    ('v5e', 'forward'): {
        (256, 256, 72): 683,
        (512, 128, 72): 483,
        (512, 384, 72): 1189,
        (1024, 1024, 72): 5527,
        (4096, 4096, 72): 72197,
    },
    ('v5e', 'backward'): {
        (256, 256, 72): 672,
        (512, 128, 72): 661,
        (512, 384, 72): 1704,
        (1024, 1024, 72): 9418,
        (4096, 4096, 72): 141615,
    },
    ('v5p', 'forward'): {
        (256, 256, 72): 350,
        (1024, 1024, 72): 2857,
        (4096, 4096, 72): 36627,
    },
    ('v5p', 'backward'): {
        (256, 256, 72): 350,
        (1024, 1024, 72): 4900,
        (4096, 4096, 72): 71613,
    },
    ('v6e', 'forward'): {
        (256, 256, 72): 559,
        (1024, 1024, 72): 3805,
        (4096, 4096, 72): 40095,
    },
    ('v6e', 'backward'): {
        (256, 256, 72): 532,
        (1024, 1024, 72): 5952,
        (4096, 4096, 72): 85804,
    },
}

COMPILE = """
import importlib, sys
import jax
from jax.experimental import topologies
jax.config.update('jax_enable_compilation_cache', False)
module, function = sys.argv[2].split(':')
chip = topologies.get_topology_desc(platform='tpu', topology_name=sys.argv[1]).devices[0]
call, shapes = getattr(importlib.import_module(module), function)(*map(int, sys.argv[3:]))
place = jax.sharding.SingleDeviceSharding(chip)
shapes = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place) for s in shapes]
jax.jit(call).lower(*shapes).compile()
"""


def kernel_seconds(instruction: str, chip: Chip) -> float | None:
    """Seconds of a Pallas call by the name that its text in the compiled program has; None if unknown.

    A shape that was not measured takes as long, by its scores, as the one nearest to it in keys and width.
    """
    named, known = FLASH.search(instruction), None
    if named is not None:
        # Both cores of a v4 are to its compiler what those of a v5p are, at a lower clock.
        known = CYCLES.get(('v5p' if chip.name == 'v4' else chip.name, named.group(1)))
    if known is None:
        return None
    batch, heads, *shape = map(int, named.groups()[1:6])
    nearest = min(known, key=lambda other: sum(abs(math.log(a / b)) for a, b in zip(shape[1:], other[1:])))
    scores = shape[0] * shape[1] / (nearest[0] * nearest[1])
    return batch * heads * known[nearest] * scores / chip.clock


def profiled(
    slice_name: str, maker: str, *numbers: int, only: str = '', timeout: float = 600
) -> dict[str, int]:
    """Cycles of the kernels of a small program whose names begin with `only`, on a slice such as 'v5e:2x2'.

    `maker` is 'module:function'; the function takes `numbers` and gives what to compile, and its shapes.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f'--xla_jf_dump_to={folder} --xla_jf_dump_static_llo_profile_to={folder}'
        names = {
            'JAX_PLATFORMS': 'cpu',
            'TPU_SKIP_MDS_QUERY': '1',
            'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
            'LIBTPU_INIT_ARGS': f'{flags} --xla_jf_dump_llo_pass_label_regex=none',
        }
        run = subprocess.run(
            [sys.executable, '-c', COMPILE, slice_name, maker, *map(str, numbers)],
            env=os.environ | names,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        found = {}
        for file in Path(folder).glob('*_static_llo_profile.textproto'):
            for name, cycles in re.findall(
                r'hlo_op_name: "([^"]+)"\s+estimated_cycles: (\d+)', file.read_text()
            ):
                if name.startswith(only):
                    found[name] = int(cycles)
    # The process may end in a failed check after the profile is written.
    if not found:
        raise RuntimeError(f'no profile of {maker}{numbers} on {slice_name}: {run.stderr[-2000:]}')
    return found
