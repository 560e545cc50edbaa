"""Small programs in XLA's text, written by hand after those that its compilers for TPU, GPU and CPU print."""

# A scan of 4 whose count is noted, in it a loop whose condition compares with 3, and a loop that may stop before 7.
LOOPS = """HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %all-reduce.1 = f32[8,4]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %all-reduce.1)
}

%inner_condition (p: (s32[], f32[8,4])) -> pred[] {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %three = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%i, %three), direction=LT
}

%outer_body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[8,4]{1,0}) while(%p), condition=%inner_condition, body=%inner_body
}

%outer_condition (p: (s32[], f32[8,4])) -> pred[] {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

%early_fused (i: s32[], n: s32[], done: pred[]) -> pred[] {
  %i = s32[] parameter(0)
  %n = s32[] parameter(1)
  %done = pred[] parameter(2)
  %lt = pred[] compare(%i, %n), direction=LT
  ROOT %both = pred[] and(%lt, %done)
}

%early_condition (p: (s32[], f32[8,4])) -> pred[] {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %seven = s32[] constant(7)
  %yes = pred[] constant(true)
  ROOT %go = pred[] fusion(%i, %seven, %yes), kind=kLoop, calls=%early_fused
}

%early_body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  ROOT %p = (s32[], f32[8,4]{1,0}) parameter(0)
}

ENTRY %main (x: f32[8,4]) -> (s32[], f32[8,4]) {
  %x = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,4]{1,0}) tuple(%zero, %x)
  %scan = (s32[], f32[8,4]{1,0}) while(%start), condition=%outer_condition, body=%outer_body, """ + (
    """backend_config={"known_trip_count":{"n":"4"}}
  ROOT %early = (s32[], f32[8,4]{1,0}) while(%scan), condition=%early_condition, body=%early_body
}
"""
)

# The forms of collectives: asynchronous ones of GPUs (a pair, and one that is wrapped), several arrays in one, TPU's
# chain of an all-gather that stands three times, and its reduce-scatter, an all-reduce of which a slice is taken.
COLLECTIVES = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%wrapped (g: f32[16,8]) -> f32[4,8] {
  %g = f32[16,8]{1,0} parameter(0)
  ROOT %rs = f32[4,8]{1,0} reduce-scatter(%g), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
}

%chain_begins (w: bf16[4,8]) -> (bf16[4,8], bf16[16,8]) {
  %w = bf16[4,8]{1,0} parameter(0)
  %all-gather.1 = bf16[16,8]{1,0} all-gather(%w), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, """ + (
    """frontend_attributes={chain_id="0"}
  ROOT %s = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%chain_goes_on (w: bf16[4,8]) -> bf16[16,8] {
  %w = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,8]{1,0} all-gather(%w), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, """
    """frontend_attributes={chain_id="0"}
}

%chain_ends (w: bf16[4,8]) -> bf16[16,8] {
  %w = bf16[4,8]{1,0} parameter(0)
  %all-gather.3 = bf16[16,8]{1,0} all-gather(%w), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, """
    """frontend_attributes={chain_id="0"}
  ROOT %d = bf16[16,8]{1,0} custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.5 (g: f32[16,8]) -> f32[4,8] {
  %g = f32[16,8]{1,0} parameter(0)
  %all-reduce.9 = f32[16,8]{1,0} all-reduce(%g), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %slice = f32[4,8]{1,0} dynamic-slice(%all-reduce.9, %zero, %zero), dynamic_slice_sizes={4,8}
}

ENTRY %main (w: bf16[4,8], g: f32[16,8]) -> f32[4,8] {
  %w = bf16[4,8]{1,0} parameter(0)
  %g = f32[16,8]{1,0} parameter(1)
  %ags = (bf16[4,8]{1,0}, bf16[8,8]{1,0}) all-gather-start(%w), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  %agd = bf16[8,8]{1,0} all-gather-done(%ags)
  %rss = ((f32[16,8]{1,0}), f32[4,8]{1,0}) async-start(%g), calls=%wrapped
  %rsd = f32[4,8]{1,0} async-done(%rss), calls=%wrapped
  %two = (f32[16,8]{1,0}, /*index=1*/f32[4,8]{1,0}) all-reduce(%g, %rsd), replica_groups=[1,8]<=[8], to_apply=%add
  %c1 = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) fusion(%w), kind=kCustom, calls=%chain_begins
  %c2 = bf16[16,8]{1,0} fusion(%w), kind=kCustom, calls=%chain_goes_on
  %c3 = bf16[16,8]{1,0} fusion(%w), kind=kCustom, calls=%chain_ends
  %cp = bf16[4,8]{1,0} collective-permute(%w), source_target_pairs={{0,4},{4,0},{1,5},{5,1},{2,6},{6,2},{3,7},{7,3}}
  %alone = f32[16,8]{1,0} all-reduce(%g), replica_groups=[8,1]<=[8], to_apply=%add
  ROOT %out = f32[4,8]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.5
}
"""
)

# What reads and writes memory: a product, a fusion that takes a slice of a stack, one that writes a slice in place, and
# what lies in a chip's fast memory.
TRAFFIC = """HloModule jit_step

%takes_a_slice (stack: f32[10,64], i: s32[]) -> f32[64] {
  %stack = f32[10,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %same = f32[10,64]{1,0} bitcast(%stack)
  %zero = s32[] constant(0)
  %one = f32[1,64]{1,0} dynamic-slice(%same, %i, %zero), dynamic_slice_sizes={1,64}
  ROOT %flat = f32[64]{0} bitcast(%one)
}

%writes_a_slice (stack: f32[10,64], x: f32[1,64], i: s32[]) -> f32[10,64] {
  %stack = f32[10,64]{1,0} parameter(0)
  %x = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[10,64]{1,0} dynamic-update-slice(%stack, %x, %i, %zero)
}

ENTRY %main (a: f32[8,16], b: f32[16,4], stack: f32[10,64], x: f32[1,64], i: s32[]) -> f32[8,4] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[16,4]{1,0} parameter(1)
  %stack = f32[10,64]{1,0} parameter(2)
  %x = f32[1,64]{1,0:T(8,128)S(1)} parameter(3)
  %i = s32[] parameter(4)
  %row = f32[64]{0} fusion(%stack, %i), kind=kLoop, calls=%takes_a_slice
  %written = f32[10,64]{1,0} fusion(%stack, %x, %i), kind=kLoop, calls=%writes_a_slice
  ROOT %y = f32[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
