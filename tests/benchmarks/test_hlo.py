"""Executables as texts: what is read of them is what stands there."""

import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2] / "benchmarks"
PERMUTES = """
HloModule jit_step, is_scheduled=true

%fused (a: f32[10,2]) -> f32[10,10] {
  %a = f32[10,2]{1,0:T(8,128)} parameter(0)
  ROOT %convolution.1 = f32[10,10]{1,0} convolution(%a, %a), dim_labels=bf_oi->bf
}

ENTRY %main (x: f32[1000], y: f32[10,2]) -> (f32[1000], f32[10,10], /*index=2*/f32[]) {
  %x = f32[1000]{0:T(1024)S(1)} parameter(0)
  %y = f32[10,2]{1,0} parameter(1)
  %start = (f32[1000]{0}, f32[1000]{0}, u32[]{:S(2)}) collective-permute-start(%x), \
channel_id=1, source_target_pairs={{0,1},{1,2},{2,0},{0,2}}
  %product = f32[10,10]{1,0} fusion(%y), kind=kOutput, calls=%fused
  %copy = f32[10,2]{1,0} copy(%y)
  %done = f32[1000]{0} collective-permute-done(%start)
  %late = f32[10,10]{1,0} fusion(%copy), kind=kOutput, calls=%fused
  ROOT %tuple = (f32[1000]{0}, f32[10,10]{1,0}) tuple(%done, %late)
}
"""
BRANCHES = """
HloModule jit_step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%quiet (p: (f32[80])) -> f32[80] {
  %p = (f32[80]{0}) parameter(0)
  ROOT %g = f32[80]{0} get-tuple-element(%p), index=0
}

%loud (p: (f32[80])) -> f32[80] {
  %p.1 = (f32[80]{0}) parameter(0)
  %g.1 = f32[80]{0} get-tuple-element(%p.1), index=0
  ROOT %reduced = f32[80]{0} all-reduce(%g.1), replica_groups=[1,8]<=[8], to_apply=%sum
}

%body (s: (s32[], u8[8,5])) -> (s32[], u8[8,5]) {
  %s = (s32[], u8[8,5]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %v = u8[8,5]{1,0} get-tuple-element(%s), index=1
  %swap = u8[8,5]{1,0} all-to-all(%v), replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %t = (s32[], u8[8,5]{1,0}) tuple(%i, %swap)
}

%test (s: (s32[], u8[8,5])) -> pred[] {
  %s.1 = (s32[], u8[8,5]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (x: f32[80], k: s32[], v: (s32[], u8[8,5])) -> f32[80] {
  %x = f32[80]{0} parameter(0)
  %k = s32[] parameter(1)
  %v.1 = (s32[], u8[8,5]{1,0}) parameter(2)
  %o = (f32[80]{0}) tuple(%x)
  %w = (s32[], u8[8,5]{1,0}) while(%v.1), condition=%test, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %c = f32[80]{0} conditional(%k, %o, %o), branch_computations={%quiet, %loud}
}
"""
CHAIN = """
HloModule jit_step, is_scheduled=true

%begin (a: u8[1,60]) -> u8[8,60] {
  %a = u8[1,60]{1,0} parameter(0)
  ROOT %g.1 = u8[8,60]{1,0} all-gather(%a), channel_id=2, \
replica_groups={{0,1,2,3,4,5,6,7}}, frontend_attributes={chain_id="0"}
}

%go_on (b: u8[1,60], c: bf16[4,4]) -> bf16[4,4] {
  %b = u8[1,60]{1,0} parameter(0)
  %c = bf16[4,4]{1,0} parameter(1)
  %g.2 = u8[8,60]{1,0} all-gather(%b), channel_id=2, \
replica_groups={{0,1,2,3,4,5,6,7}}, frontend_attributes={chain_id="0"}
  ROOT %d = bf16[4,4]{1,0} dot(%c, %c)
}

%finish (e: u8[1,60]) -> u8[8,60] {
  %e = u8[1,60]{1,0} parameter(0)
  ROOT %g.3 = u8[8,60]{1,0} all-gather(%e), channel_id=2, \
replica_groups={{0,1,2,3,4,5,6,7}}, frontend_attributes={chain_id="0"}
}

ENTRY %main (x: u8[1,60], y: bf16[4,4]) -> u8[8,60] {
  %x = u8[1,60]{1,0} parameter(0)
  %y = bf16[4,4]{1,0} parameter(1)
  %f.1 = u8[8,60]{1,0} fusion(%x), kind=kCustom, calls=%begin
  %f.2 = bf16[4,4]{1,0} fusion(%x, %y), kind=kCustom, calls=%go_on
  ROOT %f.3 = u8[8,60]{1,0} fusion(%x), kind=kCustom, calls=%finish
}
"""
LITTLE = """
HloModule jit_step

%picked (p: f32[1000], i: s32[10]) -> f32[10] {
  %p = f32[1000]{0} parameter(0)
  %i = s32[10]{0} parameter(1)
  %n = f32[1000]{0} negate(%p)
  ROOT %g = f32[10]{0} gather(%n, %i), slice_sizes={1}
}

%placed (q: f32[1000], j: s32[10], v: f32[10]) -> f32[1000] {
  %j = s32[10]{0} parameter(1)
  %q = f32[1000]{0} parameter(0)
  %v = f32[10]{0} parameter(2)
  ROOT %s = f32[1000]{0} scatter(%q, %j, %v), to_apply=%sum
}

%body (a: (s32[], f32[1000], s32[10])) -> (s32[], f32[1000], s32[10]) {
  %a = (s32[], f32[1000]{0}, s32[10]{0}) parameter(0)
  %k = s32[] get-tuple-element(%a), index=0
  %x = f32[1000]{0} get-tuple-element(%a), index=1
  %at = s32[10]{0} get-tuple-element(%a), index=2
  %some = f32[10]{0} fusion(%x, %at), kind=kLoop, calls=%picked
  %all = f32[1000]{0} fusion(%x, %at, %some), kind=kInput, calls=%placed
  ROOT %b = (s32[], f32[1000]{0}, s32[10]{0}) tuple(%k, %all, %at)
}

%test (c: (s32[], f32[1000], s32[10])) -> pred[] {
  %c = (s32[], f32[1000]{0}, s32[10]{0}) parameter(0)
  %turn = s32[] get-tuple-element(%c), index=0
  %seven = s32[] constant(7), metadata={op_name="n"}
  ROOT %lt = pred[] compare(%turn, %seven), direction=LT
}

ENTRY %main (x: (s32[], f32[1000], s32[10]), y: u32[10,32]) -> u32[10,32] {
  %x.1 = (s32[], f32[1000]{0}, s32[10]{0}) parameter(0)
  %y = u32[10,32]{1,0} parameter(1)
  %w = (s32[], f32[1000]{0}, s32[10]{0}) while(%x.1), condition=%test, body=%body
  %part = u32[1,32]{1,0} slice(%y), slice={[0:1], [0:32]}
  %start = ((u32[10,32]{1,0}), u32[5,32]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%y)
  ROOT %z = u32[10,32]{1,0:T(8,128)S(1)} copy(%y)
}
"""


@pytest.fixture
def read(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("hlo").read


@pytest.fixture
def touched(read):
    memory = importlib.import_module("hlo_memory")
    return lambda text: memory.touched(read(text))


def test_a_permute_goes_on_beside_what_stands_between_its_ends(read, touched):
    program = read(PERMUTES)
    (permute,) = program.collectives()
    assert permute == ("collective-permute", "f32[1000]", 8000, True, 2, 1)
    assert program.sent() == (8000, 8000)  # worker 0 sends to two
    assert program.kernels() == 3
    main = (80 + 400) + (80 + 80) + (80 + 400) + 4000
    assert touched(PERMUTES) == (main, 4096)  # read in a full tile


def test_branches_have_a_range_and_loops_their_number_of_times(read, touched):
    program = read(BRANCHES)
    swapped, reduced = 3 * 40 * 7 // 8, 2 * 320 * 7 // 8
    assert program.sent() == (swapped, swapped + reduced)
    assert {c.op for c in program.collectives()} == {"all-to-all", "all-reduce"}
    assert not any(c.asynchronous for c in program.collectives())
    assert (
        touched(BRANCHES).main == 3 * 2 * 40 + 2 * 320
    )  # of the branch that does more


def test_of_an_array_counts_what_a_kernel_takes_or_changes(touched):
    turn = (40 + 40 + 40) + (40 + 40 + 40 + 40)  # picked; read, written back, from what
    slices = (128 + 128) + 640  # a kernel's, and a copy to the fast memory
    assert touched(LITTLE) == (7 * turn + slices + 1280, 640 + 16 * 128 * 4)


def test_a_collective_in_several_fusions_is_one(read):
    (gather,) = read(CHAIN).collectives()
    assert gather == ("all-gather", "u8[1,60]", 7 * 60, True, 1, 1)
    assert read(CHAIN).sent() == (7 * 60, 7 * 60)


def test_what_is_no_program_is_refused(read):
    with pytest.raises(ValueError, match="ENTRY"):
        read("HloModule nothing")
