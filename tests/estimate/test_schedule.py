"""The estimator on small programs written by hand, in the compiler's own words: no compiler is needed."""

import pytest

from jaxgen.estimate import chips, collectives, hlo, matmul, network, timeline, traffic

CHIP = chips.chip('v5e')
GRID = network.Slice(CHIP, tuple((x, y, 0) for y in range(4) for x in range(2)), (0,) * 8)
MACHINE = timeline.Machine(CHIP, GRID, {'flash': 2e-3}, turns=7)

PROGRAM = """HloModule jit_f, is_scheduled=true

%fused_matmul (p.0: bf16[4096,1024], p.1: bf16[1024,512]) -> bf16[4096,512] {
  %p.0 = bf16[4096,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %conv = bf16[4096,512]{1,0:T(8,128)(2,1)S(1)} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%fused_slice (q.0: f32[4,1000,128], q.1: s32[]) -> f32[1000,128] {
  %q.0 = f32[4,1000,128]{2,1,0:T(8,128)} parameter(0)
  %q.1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %cut = f32[1,1000,128]{2,1,0:T(8,128)} dynamic-slice(%q.0, %q.1, %zero, %zero), dynamic_slice_sizes={1,1000,128}
  ROOT %flat = f32[1000,128]{1,0:T(8,128)S(1)} bitcast(%cut)
}

%fused_update (u.0: f32[4,1000,128], u.1: f32[1,1000,128], u.2: s32[]) -> f32[4,1000,128] {
  %u.0 = f32[4,1000,128]{2,1,0:T(8,128)} parameter(0)
  %u.1 = f32[1,1000,128]{2,1,0:T(8,128)S(1)} parameter(1)
  %u.2 = s32[]{:T(128)} parameter(2)
  %none = s32[]{:T(128)} constant(0)
  ROOT %put = f32[4,1000,128]{2,1,0:T(8,128)} dynamic-update-slice(%u.0, %u.1, %u.2, %none, %none)
}

%body (state: (s32[], bf16[4096,1024])) -> (s32[], bf16[4096,1024]) {
  %state = (s32[]{:T(128)}, bf16[4096,1024]{1,0:T(8,128)(2,1)}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[4096,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %one = s32[]{:T(128)} constant(1)
  %w = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %ag-start = (bf16[128,1024]{1,0:T(8,128)(2,1)}, bf16[1024,1024]{1,0:T(8,128)(2,1)}) all-gather-start(%mine), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %dot = bf16[4096,512]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %w), kind=kOutput, calls=%fused_matmul, backend_config={"window_config":{"estimated_cycles":"50000"}}
  %ag-done = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-gather-done(%ag-start)
  %mine = bf16[128,1024]{1,0:T(8,128)(2,1)} custom-call(), custom_call_target="AllocateBuffer"
  %more = s32[]{:T(128)} add(%count, %one)
  ROOT %next = (s32[]{:T(128)}, bf16[4096,1024]{1,0:T(8,128)(2,1)}) tuple(%more, %x)
}

%condition (tested: (s32[], bf16[4096,1024])) -> pred[] {
  %tested = (s32[]{:T(128)}, bf16[4096,1024]{1,0:T(8,128)(2,1)}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%tested), index=0
  %end = s32[]{:T(128)} BOUND
  ROOT %less = pred[]{:T(512)} compare(%turn, %end), direction=LT
}

ENTRY %main (a: bf16[4096,1024], b: f32[4,1000,128], n: s32[]) -> f32[4,1000,128] {
  %a = bf16[4096,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[4,1000,128]{2,1,0:T(8,128)} parameter(1)
  %n = s32[]{:T(128)} parameter(2)
  %first = s32[]{:T(128)} constant(0)
  %begin = (s32[]{:T(128)}, bf16[4096,1024]{1,0:T(8,128)(2,1)}) tuple(%first, %a)
  %loop = (s32[]{:T(128)}, bf16[4096,1024]{1,0:T(8,128)(2,1)}) while(%begin), condition=%condition, body=%body
  %row = f32[1000,128]{1,0:T(8,128)S(1)} fusion(%b, %n), kind=kLoop, calls=%fused_slice, backend_config={"window_config":{"estimated_cycles":"15000"}}
  %square = f32[1,1000,128]{2,1,0:T(8,128)S(1)} bitcast(%row)
  %flash.3 = f32[8,128]{1,0:T(8,128)} custom-call(%square), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/flash"}
  %sum = f32[8,128]{1,0:T(8,128)} all-reduce(%flash.3), channel_id=2, replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  ROOT %out = f32[4,1000,128]{2,1,0:T(8,128)} fusion(%b, %square, %n), kind=kLoop, calls=%fused_update
}
"""  # noqa: E501
LOOPS = hlo.parse(PROGRAM.replace('BOUND', 'constant(5)'))
SLICE = 1000 * 128 * 4


def of(name, module=LOOPS):
    return module.entry.by_name[name]


def test_shapes_are_padded_to_their_tiles():
    (shape,) = hlo.shapes('bf16[32,16,256,72]{2,3,1,0:T(8,128)(2,1)S(1)}')
    assert (shape.space, shape.elements) == (1, 32 * 16 * 256 * 72)
    assert shape.bytes == 32 * 16 * 72 * 256 * 2  # 256 lie along the lanes, nothing is padded
    (shape,) = hlo.shapes('bf16[32,256,16,72]{3,2,1,0:T(8,128)(2,1)}')
    assert shape.bytes == 32 * 256 * 16 * 128 * 2
    nested = hlo.shapes('((f32[4,8]{1,0:T(4,128)}), f32[1,8]{1,0:T(1,128)S(1)}, /*index=2*/s32[]{:S(2)})')
    assert [each.space for each in nested] == [0, 1, 2]


def test_a_slice_is_read_and_an_update_written_in_part():
    assert traffic.hbm_bytes(LOOPS, LOOPS.entry, of('row')) == pytest.approx(SLICE, rel=1e-3)
    assert traffic.hbm_bytes(LOOPS, LOOPS.entry, of('out')) == pytest.approx(SLICE, rel=1e-3)


def test_products_are_read_from_convolutions():
    text = """ENTRY %main (q: bf16[32,256,16,72], k: bf16[32,256,16,72]) -> bf16[32,16,256,256] {
  %q = bf16[32,256,16,72]{1,3,2,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[32,256,16,72]{1,3,2,0:T(8,128)(2,1)} parameter(1)
  %w = bf16[16,72,1152,1]{2,1,0,3:T(8,128)(2,1)} parameter(2)
  %s = bf16[32,16,256,256]{2,3,1,0:T(8,128)(2,1)} convolution(%q, %k), window={size=32x16 stride=31x15 lhs_dilate=32x16}, dim_labels=0b1f_0o1i->01bf
  %o = bf16[32,256,1152,1]{2,1,3,0:T(8,128)(2,1)} convolution(%q, %w), window={size=1x16}, dim_labels=0b1f_1io0->0bf1
}
"""  # noqa: E501
    entry = hlo.parse(text).entry
    assert matmul.dimensions(entry, entry.by_name['s']) == (512, 256, 256, 72)
    assert matmul.dimensions(entry, entry.by_name['o']) == (1, 32 * 256, 1152, 16 * 72)
    # 72 are summed as 128.
    assert matmul.matrix_cycles(CHIP, entry, entry.by_name['s']) == pytest.approx(
        2 * 512 * 256 * 256 * 128 / (197e12 / 1.5e9)
    )


def test_a_loop_turns_as_often_as_it_says():
    assert timeline.trips(LOOPS, LOOPS.entry, of('loop')) == 5
    found = timeline.spent(MACHINE, LOOPS)
    assert not found.open_loops
    open_ended = hlo.parse(PROGRAM.replace('BOUND', 'custom-call(), custom_call_target="Asked"'))
    assert timeline.trips(open_ended, open_ended.entry, of('loop', open_ended)) is None
    longer = timeline.spent(MACHINE, open_ended)
    assert longer.open_loops == 1
    assert longer.seconds['matmul'] - 2e-3 == pytest.approx(7 / 5 * (found.seconds['matmul'] - 2e-3))


def test_only_what_nothing_covers_is_waited_for():
    found = timeline.spent(MACHINE, LOOPS)
    rows = {row.kind: row for row in collectives(found)}
    gather, dot = rows['all-gather'], found.seconds['matmul'] - 2e-3  # less what the kernel takes
    assert (gather.count, gather.bytes, gather.devices) == (5, 128 * 1024 * 2 * 8, 8)
    assert gather.exposed == pytest.approx(max(0, gather.seconds - dot), abs=1e-9)
    assert rows['all-reduce'].exposed == rows['all-reduce'].seconds > 0
    assert found.total == pytest.approx(sum(found.seconds.values()))
    assert found.hidden == pytest.approx(gather.seconds - gather.exposed)
    assert not found.uncounted
    unknown = timeline.spent(timeline.Machine(CHIP, GRID, {}), LOOPS)
    assert unknown.uncounted == {'flash': 1} and unknown.total < found.total


def test_what_is_waited_for_elsewhere_ends_with_its_computation():
    lines = PROGRAM.splitlines()
    cut = '\n'.join(line for line in lines if 'all-gather-done' not in line)
    whole, left = (
        timeline.spent(MACHINE, hlo.parse(text.replace('BOUND', 'constant(3)'))) for text in (PROGRAM, cut)
    )
    assert left.collectives.keys() == whole.collectives.keys() != set()
    assert left.hidden == pytest.approx(whole.hidden)


BETWEEN = """HloModule jit_g, is_scheduled=true

ENTRY %main (a: f32[1024,1024]) -> f32[1024,1024] {
  %a = f32[1024,1024]{1,0:T(8,128)} parameter(0)
  %token = token[] after-all()
  %send = (f32[1024,1024]{1,0:T(8,128)}, u32[], token[]) send(%a, %token), channel_id=2, is_host_transfer=true, HOW
  %recv = (f32[1024,1024]{1,0:T(8,128)}, u32[], token[]) recv(%token), channel_id=1, is_host_transfer=true, HOW
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %recv-done = (f32[1024,1024]{1,0:T(8,128)}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %sum = f32[1024,1024]{1,0:T(8,128)} get-tuple-element(%recv-done), index=0
}
"""  # noqa: E501


def test_sums_between_slices_take_the_data_centres_network():
    how = 'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}'
    two = network.Slice(CHIP, GRID.places, (0,) * 4 + (1,) * 4)
    found = timeline.spent(timeline.Machine(CHIP, two, {}), hlo.parse(BETWEEN.replace('HOW', how)))
    assert list(found.collectives) == [('all-reduce between slices', 2**22, 2)]
    assert found.seconds['network'] == pytest.approx(2**22 / CHIP.dcn, rel=0.01)


def test_a_reduction_fused_with_its_slice_is_waited_for():
    text = """%scatter (r.0: bf16[4608,1152]) -> bf16[4608,144] {
  %r.0 = bf16[4608,1152]{0,1:T(8,128)(2,1)} parameter(0)
  %all = bf16[4608,1152]{0,1:T(8,128)(2,1)} all-reduce(%r.0), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}
  %at = u32[] constant(0)
  ROOT %mine = bf16[4608,144]{0,1:T(8,128)(2,1)} dynamic-slice(%all, %at, %at), dynamic_slice_sizes={4608,144}
}

ENTRY %main (g: bf16[4608,1152]) -> bf16[4608,144] {
  %g = bf16[4608,1152]{0,1:T(8,128)(2,1)} parameter(0)
  ROOT %s = bf16[4608,144]{0,1:T(8,128)(2,1)} fusion(%g), kind=kCustom, calls=%scatter
}
"""
    found = timeline.spent(MACHINE, hlo.parse(text))
    (row,) = collectives(found)
    assert (row.kind, row.count, row.bytes) == ('reduce-scatter', 1, 4608 * 1152 * 2)
    assert row.exposed == found.seconds['network'] == found.total > 0


def test_groups_in_every_spelling():
    def group(text):
        line = f'  %r = f32[8]{{0}} all-reduce(%x), channel_id=1, {text}, to_apply=%add'
        return network.group_of(hlo._instruction(line), 8)

    assert group('replica_groups={{0,4},{1,5}}') == [0, 4]
    assert group('replica_groups=[2,4]<=[8]') == [0, 1, 2, 3]
    assert group('replica_groups=[4,2]<=[2,4]T(1,0)') == [0, 4]
    assert group("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}") == [0, 4]
    assert group("replica_groups=mesh['axis_0'=8] {'axis_0'}") == list(range(8))
    assert group('replica_groups={}') == list(range(8))


def test_links_of_a_slice():
    """A ring is twice a line, two axes are twice one, and what goes between slices is slow."""
    line, both = network.seconds(GRID, 'all-gather', 8e6, (0, 2, 4, 6)), range(8)
    assert line == pytest.approx(8e6 * 3 / 4 / 45e9, rel=0.05)
    assert network.seconds(GRID, 'all-gather', 8e6, both) == pytest.approx(8e6 * 7 / 8 / 90e9, rel=0.06)
    assert network.seconds(GRID, 'all-reduce', 8e6, both) == pytest.approx(
        2 * network.seconds(GRID, 'all-gather', 8e6, both)
    )
    ring = network.Slice(CHIP, tuple((x, 0, 0) for x in range(16)), (0,) * 16)
    assert network.seconds(ring, 'all-gather', 8e8, range(16)) == pytest.approx(
        8e8 * 15 / 16 / 90e9, rel=0.01
    )
    # All to all: a half of a half's bytes crosses each middle, of a line by one link and of a ring by two.
    assert network.seconds(GRID, 'all-to-all', 8e6, (0, 2, 4, 6)) == pytest.approx(8e6 / 45e9, rel=0.05)
    assert network.seconds(GRID, 'all-to-all', 8e6, both) == pytest.approx(8e6 / 45e9, rel=0.05)
    assert network.seconds(ring, 'all-to-all', 8e8, range(16)) == pytest.approx(8e8 * 4 / 90e9, rel=0.01)
    two = network.Slice(CHIP, GRID.places, (0,) * 4 + (1,) * 4)
    assert network.seconds(two, 'all-reduce', 8e6, both) > 3 * network.seconds(GRID, 'all-reduce', 8e6, both)
    assert network.seconds(GRID, 'collective-permute', 9e6, (0, 2, 2, 4)) == pytest.approx(2e-4, rel=0.05)
    assert network.seconds(GRID, 'all-gather', 8e6, (3,)) == 0


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match='no ENTRY'):
        hlo.parse('HloModule nothing')
