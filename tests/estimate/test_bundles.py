"""Cycles of Pallas kernels by their names in a compiled program."""

import pytest

from jaxgen.estimate.bundles import CYCLES, kernel_seconds
from jaxgen.estimate.chips import CHIPS

CALL = '%{}.1 = (bf16[4,16,72,1024], f32[4,16,1,1024]) custom-call(%a), custom_call_target="tpu_custom_call"'


def test_a_kernel_takes_its_cycles_for_every_head():
    found = kernel_seconds(CALL.format('flash_forward_b4_h16_q1024_k1024_w72'), CHIPS['v5e'])
    assert found == pytest.approx(64 * CYCLES['v5e', 'forward'][1024, 1024, 72] / 1.5e9)


def test_a_shape_between_is_counted_by_its_scores():
    name = 'flash_backward_b1_h1_q4096_k1024_w72_masked'
    cycles = kernel_seconds(CALL.format(name), CHIPS['v5e']) * 1.5e9
    assert cycles == pytest.approx(4 * CYCLES['v5e', 'backward'][1024, 1024, 72])


def test_other_kernels_and_chips_are_unknown():
    assert kernel_seconds(CALL.format('splash_attention'), CHIPS['v5e']) is None
    v4, v5p = (
        kernel_seconds(CALL.format('flash_forward_b4_h16_q1024_k1024_w72'), CHIPS[name])
        for name in ('v4', 'v5p')
    )
    assert v4 == pytest.approx(v5p * 1.75 / 1.05)
