"""Means and weighted sums of rows as LLVM assembly.

Columns are taken `CHUNK` at a time, so that their float64 totals stay in the first-level cache; the row
`AHEAD` places on is fetched while one is added. There is no fast-math flag: each operation is the IEEE one,
in the order of the rows, and the bits are NumPy's for any number of lanes.

*Guarantees*
    - The kernel's bits are those of NumPy's.
"""

from __future__ import annotations

CHUNK = 1024
"""Columns whose totals are formed at once: 8 KiB."""

AHEAD = 8
"""Rows between the one that is added and the one that is fetched."""


def sum_code(lanes: int, *, weighted: bool) -> str:
    """The assembly of ``sum`` for vectors of `lanes` entries.

    ``sum(rows, n, b, weights, totals, out)``: `rows` points to the addresses of n rows of b float32 entries,
    `weights` to n float64 ones if it is the `weighted` sum and not the mean, `totals` to `CHUNK` float64
    entries of scratch memory, `out` to b float32 entries.
    """
    given, wide, mask, places = (f"<{lanes} x {kind}>" for kind in ("float", "double", "i1", "i64"))
    numbers = ", ".join(f"i64 {lane}" for lane in range(lanes))
    zeros = f"<{lanes} x i32> zeroinitializer"
    suffix = f"v{lanes}f32.p0"
    term = f"  %term = fmul {wide} %x.wide, %weight.all" if weighted else ""
    result = f"{wide} %total.last" if weighted else f"{wide} %mean"

    def inside(k: str) -> str:
        return f"""  %{k}.first = insertelement {places} poison, i64 %{k}, i64 0
  %{k}.all = shufflevector {places} %{k}.first, {places} poison, {zeros}
  %{k}.column = add {places} %{k}.all, <{numbers}>
  %{k}.inside = icmp ult {places} %{k}.column, %columns.all"""

    return f"""
declare {given} @llvm.masked.load.{suffix}(ptr, i32, {mask}, {given})
declare void @llvm.masked.store.{suffix}({given}, ptr, i32, {mask})
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)

define void @sum(ptr %rows, i64 %n, i64 %b, ptr %weights, ptr %totals, ptr %out) {{
entry:
  %count.one = uitofp i64 %n to double
  %count.first = insertelement {wide} poison, double %count.one, i64 0
  %count = shufflevector {wide} %count.first, {wide} poison, {zeros}
  br label %chunk
chunk:
  %start = phi i64 [0, %entry], [%start.next, %chunk.end]
  %start.next = add i64 %start, {CHUNK}
  %left = sub i64 %b, %start
  %is.last = icmp ult i64 %left, {CHUNK}
  %columns = select i1 %is.last, i64 %left, i64 {CHUNK}
  %columns.first = insertelement {places} poison, i64 %columns, i64 0
  %columns.all = shufflevector {places} %columns.first, {places} poison, {zeros}
  br label %clear
clear:
  %z = phi i64 [0, %chunk], [%z.next, %clear]
  %z.at = getelementptr double, ptr %totals, i64 %z
  store {wide} zeroinitializer, ptr %z.at, align 8
  %z.next = add i64 %z, {lanes}
  %z.more = icmp ult i64 %z.next, %columns
  br i1 %z.more, label %clear, label %row
row:
  %i = phi i64 [0, %clear], [%i.next, %row.end]
  %row.at = getelementptr ptr, ptr %rows, i64 %i
  %row.begin = load ptr, ptr %row.at
  %x.begin = getelementptr float, ptr %row.begin, i64 %start
  %ahead.index = add i64 %i, {AHEAD}
  %is.row = icmp ult i64 %ahead.index, %n
  %wrapped = urem i64 %ahead.index, %n
  %ahead.start = select i1 %is.row, i64 %start, i64 %start.next
  %ahead.at = getelementptr ptr, ptr %rows, i64 %wrapped
  %ahead.row = load ptr, ptr %ahead.at
  %ahead = getelementptr float, ptr %ahead.row, i64 %ahead.start
{_weight(wide, zeros) if weighted else ""}
  br label %add
add:
  %k = phi i64 [0, %row], [%k.next, %add]
  %fetched = getelementptr float, ptr %ahead, i64 %k
  call void @llvm.prefetch.p0(ptr %fetched, i32 0, i32 3, i32 1)
{inside("k")}
  %x.at = getelementptr float, ptr %x.begin, i64 %k
  %x = call {given} @llvm.masked.load.{suffix}(ptr %x.at, i32 4, {mask} %k.inside, {given} zeroinitializer)
  %x.wide = fpext {given} %x to {wide}
{term}
  %total.at = getelementptr double, ptr %totals, i64 %k
  %total = load {wide}, ptr %total.at, align 8
  %total.next = fadd {wide} %total, {"%term" if weighted else "%x.wide"}
  store {wide} %total.next, ptr %total.at, align 8
  %k.next = add i64 %k, {lanes}
  %k.more = icmp ult i64 %k.next, %columns
  br i1 %k.more, label %add, label %row.end
row.end:
  %i.next = add i64 %i, 1
  %more.rows = icmp ult i64 %i.next, %n
  br i1 %more.rows, label %row, label %round
round:
  %r = phi i64 [0, %row.end], [%r.next, %round]
{inside("r")}
  %last.at = getelementptr double, ptr %totals, i64 %r
  %total.last = load {wide}, ptr %last.at, align 8
  %mean = fdiv {wide} %total.last, %count
  %rounded = fptrunc {result} to {given}
  %column.out = add i64 %start, %r
  %out.at = getelementptr float, ptr %out, i64 %column.out
  call void @llvm.masked.store.{suffix}({given} %rounded, ptr %out.at, i32 4, {mask} %r.inside)
  %r.next = add i64 %r, {lanes}
  %r.more = icmp ult i64 %r.next, %columns
  br i1 %r.more, label %round, label %chunk.end
chunk.end:
  %more = icmp ult i64 %start.next, %b
  br i1 %more, label %chunk, label %done
done:
  ret void
}}
"""


def _weight(wide: str, zeros: str) -> str:
    return f"""  %weight.at = getelementptr double, ptr %weights, i64 %i
  %weight.one = load double, ptr %weight.at
  %weight.first = insertelement {wide} poison, double %weight.one, i64 0
  %weight.all = shufflevector {wide} %weight.first, {wide} poison, {zeros}"""
