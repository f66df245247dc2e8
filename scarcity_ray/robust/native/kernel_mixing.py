"""The compiled kernel's own mixing, as LLVM assembly: means of rows, straight into the tile that is sorted.

What it computes, and in which order, is defined by `mixture.Means.sums`: all sums of `GROUP` rows once, then
one of them a group for each mixed row. The sums of `PASS_GROUPS` groups over `MIXED_COLUMNS` columns stay in
the first-level cache; where there are more groups, the mixed rows' sums so far wait in memory.

*Guarantees*
    - The kernel's bits are those of NumPy's.
"""

from __future__ import annotations

from scarcity_ray.robust.arrays.mixed_rows import GROUP, PATTERNS

MIXED_COLUMNS = 16
"""Columns mixed at once: one look-up of a pattern serves all of them."""

PASS_GROUPS = 13
"""Groups whose sums are formed before the mixed rows add them up: 26 KB of sums."""

ENTRY_BYTES = 8 * MIXED_COLUMNS
"""Bytes of one sum."""

GROUP_BYTES = PATTERNS * ENTRY_BYTES
"""Bytes of a group's sums."""

_SUM = f"<{MIXED_COLUMNS} x double>"
_ROW = f"<{MIXED_COLUMNS} x float>"


def mixing_code(tile_columns: int) -> str:
    """The assembly of ``mix``.

    ``mix(rows, stride, width, groups, m, offsets, within, sums, shares, tile)``: `rows` points to the first
    of `width` columns (a multiple of `MIXED_COLUMNS`) of `GROUP` `groups` rows, `stride` float32 entries
    apart; `offsets` to (m, groups) int32, where in `within` the sum of a group begins, in bytes; `within` and
    `sums` to scratch memory for the groups of a pass and for m sums; `shares` to m float64; `tile` to m rows
    of `tile_columns` float32 entries.
    """
    return f"""
define internal void @mix(ptr %rows, i64 %stride, i64 %width, i64 %groups, i64 %m, ptr %offsets, ptr %within,
                          ptr %sums, ptr %shares, ptr %tile) {{
entry:
  br label %columns
columns:
  %j = phi i64 [0, %entry], [%j.next, %columns.end]
  %source = getelementptr float, ptr %rows, i64 %j
  %to = getelementptr float, ptr %tile, i64 %j
  br label %pass
pass:
  %done = phi i64 [0, %columns], [%done.next, %pass.end]
  %left = sub i64 %groups, %done
  %few = icmp ult i64 %left, {PASS_GROUPS}
  %count = select i1 %few, i64 %left, i64 {PASS_GROUPS}
  %done.next = add i64 %done, %count
  %is.first = icmp eq i64 %done, 0
  %is.last = icmp eq i64 %done.next, %groups
  br label %group
group:
  %g = phi i64 [0, %pass], [%g.next, %group]
  %g.all = add i64 %done, %g
  %g.row = mul i64 %g.all, {GROUP}
  %g.begin = mul i64 %g.row, %stride
  %g.source = getelementptr float, ptr %source, i64 %g.begin
  %g.bytes = mul i64 %g, {GROUP_BYTES}
  %g.sums = getelementptr i8, ptr %within, i64 %g.bytes
{_sums_in_a_group()}
  %g.next = add i64 %g, 1
  %more.groups = icmp ult i64 %g.next, %count
  br i1 %more.groups, label %group, label %row
row:
  %i = phi i64 [0, %group], [%i.next, %row.end]
  %i.begin = mul i64 %i, %groups
  %i.done = add i64 %i.begin, %done
  %i.offsets = getelementptr i32, ptr %offsets, i64 %i.done
  %i.sum = getelementptr {_SUM}, ptr %sums, i64 %i
  br i1 %is.first, label %begin, label %resume
resume:
  %earlier = load {_SUM}, ptr %i.sum, align 64
  br label %begin
begin:
  %total.begin = phi {_SUM} [zeroinitializer, %row], [%earlier, %resume]
  br label %add
add:
  %k = phi i64 [0, %begin], [%k.next, %add]
  %total = phi {_SUM} [%total.begin, %begin], [%total.next, %add]
  %offset.at = getelementptr i32, ptr %i.offsets, i64 %k
  %offset = load i32, ptr %offset.at, align 4
  %offset.wide = zext i32 %offset to i64
  %term.at = getelementptr i8, ptr %within, i64 %offset.wide
  %term = load {_SUM}, ptr %term.at, align 64
  %total.next = fadd {_SUM} %total, %term
  %k.next = add i64 %k, 1
  %more.terms = icmp ult i64 %k.next, %count
  br i1 %more.terms, label %add, label %added
added:
  br i1 %is.last, label %finish, label %keep
keep:
  store {_SUM} %total.next, ptr %i.sum, align 64
  br label %row.end
finish:
  %share.at = getelementptr double, ptr %shares, i64 %i
  %share = load double, ptr %share.at, align 8
  %share.first = insertelement {_SUM} poison, double %share, i64 0
  %share.all = shufflevector {_SUM} %share.first, {_SUM} poison, <{MIXED_COLUMNS} x i32> zeroinitializer
  %mean = fmul {_SUM} %total.next, %share.all
  %rounded = fptrunc {_SUM} %mean to {_ROW}
  %i.tile = mul i64 %i, {tile_columns}
  %i.to = getelementptr float, ptr %to, i64 %i.tile
  store {_ROW} %rounded, ptr %i.to, align 4
  br label %row.end
row.end:
  %i.next = add i64 %i, 1
  %more.rows = icmp ult i64 %i.next, %m
  br i1 %more.rows, label %row, label %pass.end
pass.end:
  br i1 %is.last, label %columns.end, label %pass
columns.end:
  %j.next = add i64 %j, {MIXED_COLUMNS}
  %more = icmp ult i64 %j.next, %width
  br i1 %more, label %columns, label %end
end:
  ret void
}}"""


def _sums_in_a_group() -> str:
    """Sum s, for bits k of s, of the rows k; a sum is that without its last row, plus that row."""
    lines = [f"  store {_SUM} zeroinitializer, ptr %g.sums, align 64"]
    for place in range(GROUP):
        alone = 1 << place
        lines += [
            f"  %begin{place} = mul i64 %stride, {place}",
            f"  %at{place} = getelementptr float, ptr %g.source, i64 %begin{place}",
            f"  %entries{place} = load {_ROW}, ptr %at{place}, align 4",
            f"  %s{alone} = fpext {_ROW} %entries{place} to {_SUM}",
        ]
        lines += [f"  %s{alone | s} = fadd {_SUM} %s{s}, %s{alone}" for s in range(1, alone)]
        for s in range(alone, 2 * alone):
            lines += [
                f"  %to{s} = getelementptr i8, ptr %g.sums, i64 {s * ENTRY_BYTES}",
                f"  store {_SUM} %s{s}, ptr %to{s}, align 64",
            ]
    return "\n".join(lines)
