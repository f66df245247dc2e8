"""The compiled means and weighted sums of rows.

Columns are taken `CHUNK` at a time, so that their float64 totals stay in the first-level cache; the row
`AHEAD` places on is fetched while one is added. Each operation is the IEEE one, in the order of the rows, and
the bits are NumPy's for any number of lanes. NumPy adds float32 rows to float64 totals by way of a buffer;
the kernel takes a third to a half of its time, which is the memory's.

Guarantees:
    The compiled kernel's bits are those of NumPy's.
    Rows are never written to.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import Rows, Vector, contiguous_rows
from scarcity_ray.robust.arrays.threads import workspace
from scarcity_ray.robust.native.loader import MachineCode, inside, splat

CHUNK = 1024
"""Columns whose totals are formed at once: 8 KiB."""

AHEAD = 8
"""Rows between the one that is added and the one that is fetched."""


class SumKernel:
    """The kernel's machine code for this processor; raises what `MachineCode` does."""

    def __init__(self) -> None:
        self._code = {
            weighted: MachineCode(partial(_assembly, weighted), {"sum": "piippp"})
            for weighted in (False, True)
        }

    def __call__(self, rows: Rows, weights: NDArray[np.float64] | None) -> Vector:
        """Sum of weights[i] * rows[i], or the mean without weights; see `mean.weighted_sum`."""
        rows, addresses = contiguous_rows(rows)
        shares = None if weights is None else np.ascontiguousarray(weights, np.float64)
        totals = workspace("totals", (CHUNK,), np.float64)
        result = np.empty(len(rows[0]), np.float32)
        size = len(addresses), len(result)
        self._code[shares is not None](
            "sum", addresses, *size, 0 if shares is None else shares, totals, result
        )
        return result


def _assembly(weighted: bool, has_wide_vectors: bool) -> str:
    return sum_code(16 if has_wide_vectors else 8, weighted=weighted)


def sum_code(lanes: int, *, weighted: bool) -> str:
    """The assembly of ``sum`` for vectors of `lanes` entries.

    ``sum(rows, n, b, weights, totals, out)``: `rows` points to the addresses of n rows of b float32 entries,
    `weights` to n float64 ones if it is the `weighted` sum and not the mean, `totals` to `CHUNK` float64
    entries of scratch memory, `out` to b float32 entries.
    """
    given, wide, mask = (f"<{lanes} x {kind}>" for kind in ("float", "double", "i1"))
    suffix = f"v{lanes}f32.p0"
    weight = term = ""
    summand, result = "%x.wide", "%mean"
    if weighted:
        weight = f"""  %weight.at = getelementptr double, ptr %weights, i64 %i
  %weight = load double, ptr %weight.at
{splat("weight.all", lanes, "double", "%weight")}"""
        term = f"  %term = fmul {wide} %x.wide, %weight.all"
        summand, result = "%term", "%total.last"

    return f"""
declare {given} @llvm.masked.load.{suffix}(ptr, i32, {mask}, {given})
declare void @llvm.masked.store.{suffix}({given}, ptr, i32, {mask})
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)

define void @sum(ptr %rows, i64 %n, i64 %b, ptr %weights, ptr %totals, ptr %out) {{
entry:
  %count.one = uitofp i64 %n to double
{splat("count", lanes, "double", "%count.one")}
  br label %chunk
chunk:
  %start = phi i64 [0, %entry], [%start.next, %chunk.end]
  %start.next = add i64 %start, {CHUNK}
  %left = sub i64 %b, %start
  %is.last = icmp ult i64 %left, {CHUNK}
  %columns = select i1 %is.last, i64 %left, i64 {CHUNK}
{splat("columns.all", lanes, "i64", "%columns")}
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
{weight}
  br label %add
add:
  %k = phi i64 [0, %row], [%k.next, %add]
  %fetched = getelementptr float, ptr %ahead, i64 %k
  call void @llvm.prefetch.p0(ptr %fetched, i32 0, i32 3, i32 1)
{inside("k", lanes)}
  %x.at = getelementptr float, ptr %x.begin, i64 %k
  %x = call {given} @llvm.masked.load.{suffix}(ptr %x.at, i32 4, {mask} %k.inside, {given} zeroinitializer)
  %x.wide = fpext {given} %x to {wide}
{term}
  %total.at = getelementptr double, ptr %totals, i64 %k
  %total = load {wide}, ptr %total.at, align 8
  %total.next = fadd {wide} %total, {summand}
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
{inside("r", lanes)}
  %last.at = getelementptr double, ptr %totals, i64 %r
  %total.last = load {wide}, ptr %last.at, align 8
  %mean = fdiv {wide} %total.last, %count
  %rounded = fptrunc {wide} {result} to {given}
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
