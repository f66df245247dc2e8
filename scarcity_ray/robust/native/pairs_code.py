"""Squared distances of pairs of rows, from their differences, as LLVM assembly.

Columns are taken `CHUNK` at a time, so that a row that is in many pairs is read from memory once, and with
each pair the next chunk of one row is fetched. Differences, squares and sums are float64; `LANES` sums run
along the columns, and whoever calls adds them up.

*Guarantees*
    - Equal rows have distance zero.
"""

from __future__ import annotations

from scarcity_ray.robust.native.gram_kernel import CHUNK

LANES = 16
"""Sums a pair has: two vectors of float64, so that one multiply and add need not wait for the last."""


def pairs_code() -> str:
    """The assembly of ``pairs``.

    ``pairs(rows, n, b, pairs, num_pairs, sums)``: `rows` points to the addresses of n rows of b float32
    entries, `pairs` to two int64 row numbers a pair, `sums` to `LANES` float64 a pair, to which is added.
    """
    given, wide, mask, places = (f"<{LANES} x {kind}>" for kind in ("float", "double", "i1", "i64"))
    numbers = ", ".join(f"i64 {lane}" for lane in range(LANES))
    load = f"@llvm.masked.load.v{LANES}f32.p0"
    fma = f"@llvm.fma.v{LANES}f64"

    def square(suffix: str, total: str, result: str) -> str:
        return f"""  %x{suffix}.wide = fpext {given} %x{suffix} to {wide}
  %y{suffix}.wide = fpext {given} %y{suffix} to {wide}
  %apart{suffix} = fsub {wide} %x{suffix}.wide, %y{suffix}.wide
  {result} = call {wide} {fma}({wide} %apart{suffix}, {wide} %apart{suffix}, {wide} {total})"""

    return f"""
declare {given} {load}(ptr, i32, {mask}, {given})
declare {wide} {fma}({wide}, {wide}, {wide})
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)

define void @pairs(ptr %rows, i64 %n, i64 %b, ptr %pairs, i64 %num.pairs, ptr %sums) {{
entry:
  %over = and i64 %b, {LANES - 1}
  %over.first = insertelement {places} poison, i64 %over, i64 0
  %over.all = shufflevector {places} %over.first, {places} poison, <{LANES} x i32> zeroinitializer
  %inside = icmp ult {places} <{numbers}>, %over.all
  br label %chunk
chunk:
  %start = phi i64 [0, %entry], [%start.next, %chunk.end]
  %start.next = add i64 %start, {CHUNK}
  %is.last = icmp ult i64 %b, %start.next
  %stop = select i1 %is.last, i64 %b, i64 %start.next
  %whole = and i64 %stop, {-LANES}
  %any.whole = icmp ult i64 %start, %whole
  %any.rest = icmp ult i64 %whole, %stop
  br label %pair
pair:
  %p = phi i64 [0, %chunk], [%p.next, %pair.end]
  %p.place = mul i64 %p, 2
  %i.at = getelementptr i64, ptr %pairs, i64 %p.place
  %j.at = getelementptr i64, ptr %i.at, i64 1
  %i = load i64, ptr %i.at
  %j = load i64, ptr %j.at
  %i.row = getelementptr ptr, ptr %rows, i64 %i
  %j.row = getelementptr ptr, ptr %rows, i64 %j
  %i.begin = load ptr, ptr %i.row
  %j.begin = load ptr, ptr %j.row
  %is.row = icmp ult i64 %p, %n
  %fetched = select i1 %is.row, i64 %p, i64 0
  %fetched.at = getelementptr ptr, ptr %rows, i64 %fetched
  %fetched.begin = load ptr, ptr %fetched.at
  %sum.at = getelementptr {wide}, ptr %sums, i64 %p
  %sum.old = load {wide}, ptr %sum.at, align 8
  br i1 %any.whole, label %step, label %rest
step:
  %k = phi i64 [%start, %pair], [%k.next, %step]
  %sum = phi {wide} [%sum.old, %pair], [%sum.next, %step]
  %k.ahead = add i64 %k, {CHUNK}
  %ahead = getelementptr float, ptr %fetched.begin, i64 %k.ahead
  call void @llvm.prefetch.p0(ptr %ahead, i32 0, i32 2, i32 1)
  %x.at = getelementptr float, ptr %i.begin, i64 %k
  %y.at = getelementptr float, ptr %j.begin, i64 %k
  %x = load {given}, ptr %x.at, align 4
  %y = load {given}, ptr %y.at, align 4
{square("", "%sum", "%sum.next")}
  %k.next = add i64 %k, {LANES}
  %more.columns = icmp ult i64 %k.next, %whole
  br i1 %more.columns, label %step, label %rest
rest:
  %sum.whole = phi {wide} [%sum.old, %pair], [%sum.next, %step]
  br i1 %any.rest, label %add.rest, label %pair.end
add.rest:
  %x.rest.at = getelementptr float, ptr %i.begin, i64 %whole
  %y.rest.at = getelementptr float, ptr %j.begin, i64 %whole
  %x.rest = call {given} {load}(ptr %x.rest.at, i32 4, {mask} %inside, {given} zeroinitializer)
  %y.rest = call {given} {load}(ptr %y.rest.at, i32 4, {mask} %inside, {given} zeroinitializer)
{square(".rest", "%sum.whole", "%sum.rest")}
  br label %pair.end
pair.end:
  %sum.all = phi {wide} [%sum.whole, %rest], [%sum.rest, %add.rest]
  store {wide} %sum.all, ptr %sum.at, align 8
  %p.next = add i64 %p, 1
  %more.pairs = icmp ult i64 %p.next, %num.pairs
  br i1 %more.pairs, label %pair, label %chunk.end
chunk.end:
  %more = icmp ult i64 %start.next, %b
  br i1 %more, label %chunk, label %done
done:
  ret void
}}
"""
