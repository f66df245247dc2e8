"""The compiled column kernel: sorts tiles of columns and averages a window of each.

What it computes, in the words of `order_statistics.window_summary`, is defined by the NumPy code there. A
process without it gets the same bits from NumPy, so that nodes that differ in the extra ``fast`` agree. It
sorts by a network of units (`sorting_networks.bitonic_network`), in vectors of 16 or 8 columns.

Means of rows (`mixed_rows.Means`) are formed straight in the tile that is sorted, in the order that
`Means.sums` defines: all sums of `GROUP` rows once, then one of them a group for each mixed row. The sums of
`PASS_GROUPS` groups over `MIXED_COLUMNS` columns stay in the first-level cache; where there are more groups,
the mixed rows' sums so far wait in memory.

Guarantees:
    The kernel's bits are those of NumPy's.
    Rows are never written to.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.mixed_rows import GROUP, PATTERNS, Means, MixedRows
from scarcity_ray.robust.arrays.sorting_networks import COMPARATORS, WIRES, UnitKind, bitonic_network
from scarcity_ray.robust.arrays.threads import workspace
from scarcity_ray.robust.native.loader import MachineCode, aligned, splat

TILE = 128
"""Columns sorted at once: a hundred rows of them nearly fill a first-level cache, and stay in the second."""

UNIT_FIELDS = 1 + WIRES
"""Integers that encode a unit: its kind, and where in the tile each wire begins, in entries."""

LINE = 16
"""float32 entries of a cache line: rows begin on one, and blocks are filled up to whole ones."""

MIXED_COLUMNS = 16
"""Columns mixed at once: one look-up of a pattern serves all of them."""

PASS_GROUPS = 13
"""Groups whose sums are formed before the mixed rows add them up: 26 KB of sums."""

ENTRY_BYTES = 8 * MIXED_COLUMNS
"""Bytes of one sum."""

GROUP_BYTES = PATTERNS * ENTRY_BYTES
"""Bytes of a group's sums."""


class OrderStatisticsKernel:
    """The kernel's machine code for this processor; raises what `MachineCode` does."""

    def __init__(self) -> None:
        self._code = MachineCode(
            lambda wide: column_code(16 if wide else 8),
            {"columns": "piiippiiiip", "mixed_columns": "piiippiiiipipppp"},
        )

    def __call__(
        self, rows: Sequence[NDArray[np.float32]], start: int, stop: int, *, around_median: bool
    ) -> NDArray[np.float32]:
        """Mean, least and largest of a window of each sorted column; see `order_statistics.window_summary`.

        `MixedRows` that are means are not formed in memory. Around the median, start is 0.

        Returns:
            (3, b) float32 in scratch memory that is valid until this thread's next call.
        """
        means = rows.mixture if isinstance(rows, MixedRows) and isinstance(rows.mixture, Means) else None
        given = rows.rows if isinstance(rows, MixedRows) and means is not None else rows
        num_rows, length = len(rows), len(given[0])
        filled = -(-length // LINE) * LINE
        rest = 0 if means is None else GROUP * means.patterns.shape[1] - len(given)
        block = aligned("kernel rows", (len(given) + rest, filled + LINE), np.float32)
        for row, copied in zip(given, block, strict=False):
            np.copyto(copied[:length], row)
        block[: len(given), length:filled] = 0.0
        block[len(given) :] = 0.0
        tile = aligned("kernel tile", (num_rows + 1, TILE), np.float32)
        tile[num_rows] = np.inf
        units = _encoded(num_rows, *((0, num_rows) if around_median else (start, stop)))
        out = workspace("kernel out", (3, filled), np.float32)
        arguments = (
            *(block, filled + LINE, num_rows, filled, tile, units, len(units)),
            *(start, stop, num_rows if around_median else stop, out),
        )
        if means is None:
            self._code("columns", *arguments)
        else:
            offsets = _offsets(means)
            within = aligned("kernel sums in groups", (PASS_GROUPS, GROUP_BYTES // 8), np.float64)
            sums = aligned("kernel sums", (num_rows, MIXED_COLUMNS), np.float64)
            shares = np.ascontiguousarray(means.shares)
            self._code("mixed_columns", *arguments, offsets.shape[1], offsets, within, sums, shares)
        summary: NDArray[np.float32] = out[:, :length]
        return summary


def _offsets(means: Means) -> NDArray[np.int32]:
    """Offsets in bytes of the sums of groups that enter each mixed row, (m, groups)."""
    places = np.arange(means.patterns.shape[1], dtype=np.int32) % PASS_GROUPS
    return means.patterns * np.int32(ENTRY_BYTES) + places * np.int32(GROUP_BYTES)


@functools.lru_cache(maxsize=256)
def _encoded(num_wires: int, start: int, stop: int) -> NDArray[np.int64]:
    units = [
        (kind, *(wire * TILE for wire in wires)) for kind, wires in bitonic_network(num_wires, start, stop)
    ]
    return np.array(units, np.int64).reshape(-1, UNIT_FIELDS)


def column_code(lanes: int) -> str:
    """The assembly of ``columns`` and ``mixed_columns`` for vectors of `lanes` float32 entries.

    ``columns(rows, stride, n, b, tile, units, num_units, start, stop, limit, out)``: `rows` points to n rows
    of b float32 entries (b a multiple of `lanes`, rows `stride` entries apart), `tile` to n + 1 rows of
    `TILE` entries whose last holds infinity, `units` to the int64 encoded network, `out` to three rows of b
    float32 entries (mean, least, largest). `limit` is the number of ranks to choose the window from: `stop`
    if it is start, ..., stop - 1 itself, n if it is the stop - start values closest to the median.

    ``mixed_columns`` sorts the n rows that ``mix`` makes of what `rows` points to, and takes its arguments
    (groups, offsets, within, sums, shares) after those; see `_mixing`.
    """
    parts = [*(_unit(kind, lanes) for kind in UnitKind), _average(lanes), _mixing()]
    return "\n".join([*parts, _columns("columns", "", _copied(lanes)), _columns(*_MIXED_COLUMNS)])


def _unit(kind: UnitKind, lanes: int) -> str:
    vector = f"<{lanes} x float>"
    lines = [f"define internal void @unit{int(kind)}(ptr %tile, ptr %unit, i64 %width) {{", "entry:"]
    for wire in range(WIRES):
        lines += [
            f"  %field{wire} = getelementptr i64, ptr %unit, i64 {1 + wire}",
            f"  %begin{wire} = load i64, ptr %field{wire}",
            f"  %wire{wire} = getelementptr float, ptr %tile, i64 %begin{wire}",
        ]
    lines += ["  br label %column", "column:", "  %j = phi i64 [0, %entry], [%next, %column]"]
    values = [f"%value{wire}" for wire in range(WIRES)]
    for wire, value in enumerate(values):
        lines += [
            f"  %at{wire} = getelementptr float, ptr %wire{wire}, i64 %j",
            f"  {value} = load {vector}, ptr %at{wire}, align 4",
        ]
    for index, (low, high) in enumerate(COMPARATORS[kind]):
        first, second = values[low], values[high]
        values[low], values[high] = f"%low{index}", f"%high{index}"
        choose = f"select <{lanes} x i1> %less{index}, {vector}"
        lines += [
            f"  %less{index} = fcmp olt {vector} {first}, {second}",
            f"  {values[low]} = {choose} {first}, {vector} {second}",
            f"  {values[high]} = {choose} {second}, {vector} {first}",
        ]
    lines += [f"  store {vector} {value}, ptr %at{wire}, align 4" for wire, value in enumerate(values)]
    lines += [
        f"  %next = add i64 %j, {lanes}",
        "  %more = icmp ult i64 %next, %width",
        "  br i1 %more, label %column, label %done",
        "done:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


def _average(lanes: int) -> str:
    vector, wide, mask = f"<{lanes} x float>", f"<{lanes} x double>", f"<{lanes} x i1>"
    infinity, minus_infinity = "0x7FF0000000000000", "0xFFF0000000000000"
    return f"""
define internal void @average(ptr %tile, i64 %width, i64 %start, i64 %stop, i64 %limit, ptr %out, i64 %b) {{
entry:
  %count = sub i64 %stop, %start
  %count.one = uitofp i64 %count to double
{splat("count.wide", lanes, "double", "%count.one")}
  %last = sub i64 %limit, 1
  %middle.a = lshr i64 %last, 1
  %middle.b = lshr i64 %limit, 1
  %begin.a = mul i64 %middle.a, {TILE}
  %begin.b = mul i64 %middle.b, {TILE}
  %out.low = getelementptr float, ptr %out, i64 %b
  %out.high = getelementptr float, ptr %out.low, i64 %b
  br label %column
column:
  %j = phi i64 [0, %entry], [%j.next, %end]
  %base = getelementptr float, ptr %tile, i64 %j
  %at.a = getelementptr float, ptr %base, i64 %begin.a
  %at.b = getelementptr float, ptr %base, i64 %begin.b
  %a = load {vector}, ptr %at.a, align 4
  %b.value = load {vector}, ptr %at.b, align 4
  %a.wide = fpext {vector} %a to {wide}
  %b.wide = fpext {vector} %b.value to {wide}
  %twice.median = fadd {wide} %a.wide, %b.wide
  br label %rank
rank:
  %r = phi i64 [%start, %column], [%r.next, %rank.end]
  %total = phi {wide} [zeroinitializer, %column], [%total.next, %rank.end]
  %low = phi {vector} [splat (float {infinity}), %column], [%low.next, %rank.end]
  %high = phi {vector} [splat (float {minus_infinity}), %column], [%high.next, %rank.end]
  %begin = mul i64 %r, {TILE}
  %at = getelementptr float, ptr %base, i64 %begin
  %value = load {vector}, ptr %at, align 4
  %other = add i64 %r, %count
  %has.other = icmp ult i64 %other, %limit
  br i1 %has.other, label %choose, label %rank.end
choose:
  %s = phi i64 [%other, %rank], [%s.next, %choose]
  %kept = phi {vector} [%value, %rank], [%kept.next, %choose]
  %s.begin = mul i64 %s, {TILE}
  %s.at = getelementptr float, ptr %base, i64 %s.begin
  %upper = load {vector}, ptr %s.at, align 4
  %kept.wide = fpext {vector} %kept to {wide}
  %upper.wide = fpext {vector} %upper to {wide}
  %both = fadd {wide} %kept.wide, %upper.wide
  %closer = fcmp olt {wide} %both, %twice.median
  %kept.next = select {mask} %closer, {vector} %upper, {vector} %kept
  %s.next = add i64 %s, %count
  %again = icmp ult i64 %s.next, %limit
  br i1 %again, label %choose, label %rank.end
rank.end:
  %chosen = phi {vector} [%value, %rank], [%kept.next, %choose]
  %chosen.wide = fpext {vector} %chosen to {wide}
  %total.next = fadd {wide} %total, %chosen.wide
  %is.low = fcmp olt {vector} %chosen, %low
  %low.next = select {mask} %is.low, {vector} %chosen, {vector} %low
  %is.high = fcmp ogt {vector} %chosen, %high
  %high.next = select {mask} %is.high, {vector} %chosen, {vector} %high
  %r.next = add i64 %r, 1
  %more.ranks = icmp ult i64 %r.next, %stop
  br i1 %more.ranks, label %rank, label %end
end:
  %mean.wide = fdiv {wide} %total.next, %count.wide
  %mean = fptrunc {wide} %mean.wide to {vector}
  %to.mean = getelementptr float, ptr %out, i64 %j
  store {vector} %mean, ptr %to.mean, align 4
  %to.low = getelementptr float, ptr %out.low, i64 %j
  store {vector} %low.next, ptr %to.low, align 4
  %to.high = getelementptr float, ptr %out.high, i64 %j
  store {vector} %high.next, ptr %to.high, align 4
  %j.next = add i64 %j, {lanes}
  %more = icmp ult i64 %j.next, %width
  br i1 %more, label %column, label %done
done:
  ret void
}}"""


def _copied(lanes: int) -> str:
    """Copies a tile's columns of the n rows into the tile."""
    vector = f"<{lanes} x float>"
    return f"""  br label %row
row:
  %i = phi i64 [0, %tiles], [%i.next, %row.end]
  %from.begin = mul i64 %i, %stride
  %from = getelementptr float, ptr %source, i64 %from.begin
  %to.begin = mul i64 %i, {TILE}
  %to = getelementptr float, ptr %tile, i64 %to.begin
  br label %copy
copy:
  %c = phi i64 [0, %row], [%c.next, %copy]
  %from.at = getelementptr float, ptr %from, i64 %c
  %to.at = getelementptr float, ptr %to, i64 %c
  %copied = load {vector}, ptr %from.at, align 4
  store {vector} %copied, ptr %to.at, align 4
  %c.next = add i64 %c, {lanes}
  %more.copies = icmp ult i64 %c.next, %width
  br i1 %more.copies, label %copy, label %row.end
row.end:
  %i.next = add i64 %i, 1
  %more.rows = icmp ult i64 %i.next, %n
  br i1 %more.rows, label %row, label %filled"""


_MIXED_COLUMNS = (
    "mixed_columns",
    ", i64 %groups, ptr %offsets, ptr %within, ptr %sums, ptr %shares",
    """  call void @mix(ptr %source, i64 %stride, i64 %width, i64 %groups, i64 %n, ptr %offsets, ptr %within,
                 ptr %sums, ptr %shares, ptr %tile)
  br label %filled""",
)


def _columns(name: str, more_arguments: str, fill: str) -> str:
    cases = "\n".join(f"    i64 {int(kind)}, label %kind{int(kind)}" for kind in UnitKind)
    call = "  call void @unit{0}(ptr %tile, ptr %unit, i64 %width)\n  br label %unit.end"
    calls = "\n".join(f"kind{int(kind)}:\n{call.format(int(kind))}" for kind in UnitKind)
    return f"""
define void @{name}(ptr %rows, i64 %stride, i64 %n, i64 %b, ptr %tile, ptr %units, i64 %num.units,
                    i64 %start, i64 %stop, i64 %limit, ptr %out{more_arguments}) {{
entry:
  %fields = mul i64 %num.units, {UNIT_FIELDS}
  br label %tiles
tiles:
  %t = phi i64 [0, %entry], [%t.next, %tile.end]
  %left = sub i64 %b, %t
  %is.last = icmp ult i64 %left, {TILE}
  %width = select i1 %is.last, i64 %left, i64 {TILE}
  %source = getelementptr float, ptr %rows, i64 %t
{fill}
filled:
  br label %sort
sort:
  %u = phi i64 [0, %filled], [%u.next, %unit.end]
  %unit = getelementptr i64, ptr %units, i64 %u
  %kind = load i64, ptr %unit
  switch i64 %kind, label %unit.end [
{cases}
  ]
{calls}
unit.end:
  %u.next = add i64 %u, {UNIT_FIELDS}
  %more.units = icmp ult i64 %u.next, %fields
  br i1 %more.units, label %sort, label %tile.end
tile.end:
  %out.at = getelementptr float, ptr %out, i64 %t
  call void @average(ptr %tile, i64 %width, i64 %start, i64 %stop, i64 %limit, ptr %out.at, i64 %b)
  %t.next = add i64 %t, %width
  %more = icmp ult i64 %t.next, %b
  br i1 %more, label %tiles, label %done
done:
  ret void
}}
"""


_SUM = f"<{MIXED_COLUMNS} x double>"
_ROW = f"<{MIXED_COLUMNS} x float>"


def _mixing() -> str:
    """The assembly of ``mix``.

    ``mix(rows, stride, width, groups, m, offsets, within, sums, shares, tile)``: `rows` points to the first
    of `width` columns (a multiple of `MIXED_COLUMNS`) of `GROUP` `groups` rows, `stride` float32 entries
    apart; `offsets` to (m, groups) int32, where in `within` the sum of a group begins, in bytes; `within` and
    `sums` to scratch memory for the groups of a pass and for m sums; `shares` to m float64; `tile` to m rows
    of `TILE` float32 entries.
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
{splat("share.all", MIXED_COLUMNS, "double", "%share")}
  %mean = fmul {_SUM} %total.next, %share.all
  %rounded = fptrunc {_SUM} %mean to {_ROW}
  %i.tile = mul i64 %i, {TILE}
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
