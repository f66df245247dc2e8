"""The column kernel as LLVM assembly: sorts tiles of columns unit by unit and averages a window of each.

What it computes, in the words of `columns.window_summary`, is defined by the NumPy code there. It is written
in vectors of `lanes` columns, with no fast-math flag, so that every operation is the IEEE one, in the order
written: on every processor and for any number of lanes the bits are the same.

*Guarantees*
    - The kernel's bits are those of NumPy's.
"""

from __future__ import annotations

from scarcity_ray.robust.arrays.sorting_networks import COMPARATORS, WIRES, UnitKind
from scarcity_ray.robust.native.kernel_mixing import mixing_code

TILE = 128
"""Columns sorted at once: a hundred rows of them nearly fill a first-level cache, and stay in the second."""

UNIT_FIELDS = 1 + WIRES
"""Integers that encode a unit: its kind, and where in the tile each wire begins, in entries."""


def kernel_code(lanes: int) -> str:
    """The assembly of ``columns`` and ``mixed_columns`` for vectors of `lanes` float32 entries.

    ``columns(rows, stride, n, b, tile, units, num_units, start, stop, limit, out)``: `rows` points to n rows
    of b float32 entries (b a multiple of `lanes`, rows `stride` entries apart), `tile` to n + 1 rows of
    `TILE` entries whose last holds infinity, `units` to the int64 encoded network, `out` to three rows of b
    float32 entries (mean, least, largest). `limit` is the number of ranks to choose the window from: `stop`
    if it is start, ..., stop - 1 itself, n if it is the stop - start values closest to the median.

    ``mixed_columns`` sorts the n rows that ``mix`` makes of what `rows` points to, and takes its arguments
    (groups, offsets, within, sums, shares) after those; see `kernel_mixing.mixing_code`.
    """
    parts = [*(_unit(kind, lanes) for kind in UnitKind), _average(lanes), mixing_code(TILE)]
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
  %count.first = insertelement {wide} poison, double %count.one, i64 0
  %count.wide = shufflevector {wide} %count.first, {wide} poison, <{lanes} x i32> zeroinitializer
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
