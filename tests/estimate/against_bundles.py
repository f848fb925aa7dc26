"""The estimator beside the compiler's final bundles, fusion by fusion: what its constants were calibrated
by.

python tests/estimate/against_bundles.py v5e:1x1 mlp [forward] # or another of HALVES; v5p:2x2x1, v6e:1x1

Bundles are counted as often as their loops turn. They show no waiting for the matrix units or for HBM, so
that a fusion takes the larger of its bundles and those two. Needs libtpu, which reads where to write when
it is loaded.
"""

import dataclasses
import os
import re
import sys
import tempfile
from pathlib import Path

FOLDER = tempfile.mkdtemp()
os.environ['LIBTPU_INIT_ARGS'] = (
    f'--xla_jf_dump_to={FOLDER} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles'
)

import jax  # noqa: E402  (after what libtpu reads)
import rows  # noqa: E402

from jaxgen.estimate import chips, hlo, matmul, network, timeline, traffic  # noqa: E402

BUNDLE = re.compile(r'\s*0x[0-9a-f]+ |\s+0 ')
END = re.compile(r'scmp\.\w+\.s32\.totalorder %?\w+, (\d+) /\* loop exit test')
HALVES = {
    'mlp': rows.mlp_half(jax.nn.gelu),
    'erf': rows.mlp_half(lambda x: jax.nn.gelu(x, approximate=False)),
    'attention': rows.attention_half('separate', 'BLHK', 'float32'),
    'heads-first': rows.attention_half('fused', 'BHLK', 'float32'),
    'library': rows.attention_half('fused', 'BLHK', 'library'),
}


def bundles(name: str) -> int | None:
    """The bundles of a fusion, each as often as the loops around it turn."""
    files = [
        file
        for file in Path(FOLDER).iterdir()
        if re.fullmatch(rf'\d+-{re.escape(name)}-\d+-final_bundles.txt', file.name)
    ]
    if not files:
        return None
    lines = [line for line in files[0].read_text().splitlines() if BUNDLE.match(line)]
    begins = [i for i, line in enumerate(lines) if re.match(r'\s*\S+\s+LB', line)]
    times = [1] * len(lines)
    for i, line in enumerate(lines):
        if (end := END.search(line)) and (before := [begin for begin in begins if begin < i]):
            begins.remove(before[-1])
            for j in range(before[-1], i + 1):
                times[j] *= int(end.group(1))
    return sum(times)


def main(where: str, half: str, direction: str = 'both') -> None:
    made = HALVES[half] if direction == 'forward' else rows.backward(*HALVES[half])
    program = rows.compiled(*made, where)
    chip, module = chips.chip(where), hlo.parse(program.as_text())
    machine = timeline.Machine(chip, network.Slice(chip, ((0, 0, 0),), (0,)), {})
    sums = [0.0] * 3
    print(f'{"fusion":34} compiler     ours  bundles   matrix      HBM   (cycles)')
    for one in module.entry.instructions:
        counted = bundles(one.name) if one.cycles else None
        if counted is None:
            continue
        matrix = sum(matmul.matrix_cycles(chip, *each) for each in matmul.products(module, one))
        memory = traffic.hbm_bytes(module, module.entry, one) / chip.bandwidth * chip.clock
        operands = (module.entry.by_name[name] for name in one.operands)
        given = (dataclasses.replace(each, opcode='parameter', attributes='') for each in operands)
        alone = hlo.Computation('alone', (*given, one))
        ours = timeline.spent(machine, module, alone).total * chip.clock
        row = max(one.cycles, memory), ours, max(counted, matrix, memory)
        sums = [total + value for total, value in zip(sums, row)]
        print(f'{one.name:34} {one.cycles:8} {ours:8.0f} {counted:8} {matrix:8.0f} {memory:8.0f}')
    print(f'all, of the bundles: the compiler {sums[0] / sums[2]:.2f}, ours {sums[1] / sums[2]:.2f}')


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')
    main(*sys.argv[1:])
