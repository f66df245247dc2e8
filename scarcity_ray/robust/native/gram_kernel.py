"""The compiled inner products of rows, and squared distances of pairs, for processors with 512-bit vectors.

*Inner products.* Columns are taken `CHUNK` at a time: the rows' entries less the centre's go to a scratch
array that stays in the second-level cache, while the next chunk is fetched, and tiles of `TILE` by `TILE`
inner products are formed from there in registers. A tile's products run along the columns in the lanes of a
vector. Each lane sums `CHAIN` products, by fused multiply and add; the lanes are summed pairwise; these sums,
and all sums of sums, are float64. So the bits depend neither on how many rows there are nor on the processor.
BLAS packs rows that were gathered and centred before, and is made for larger matrices: the kernel takes a
half to two thirds of its time. What it gives agrees with BLAS to rounding, not in every bit.

*Pairs.* Columns are taken as above, so that a row that is in many pairs is read from memory once, and with
each pair the next chunk of one row is fetched. Differences, squares and sums are float64; `LANES` sums run
along the columns, and whoever calls adds them up.

Guarantees:
    Inner products are those of the rows less the centre.
    A float32 inner product is off by at most `ROUNDINGS` 2^-24 times the sum of its products' magnitudes.
    Equal rows have equal inner products, to the bit.
    Squares of pairs are those of their differences.
    Rows are never written to.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import Matrix, Rows, contiguous_rows
from scarcity_ray.robust.arrays.threads import workspace
from scarcity_ray.robust.native.loader import (
    LINE_BYTES,
    MachineCode,
    UnsuitedProcessor,
    aligned,
    checked_kernel,
    inside,
    splat,
)

CHUNK = 512
"""Columns whose points are formed at once: 4 KiB of a row at most, 200 to 400 KiB of a hundred rows."""

TILE = 4
"""Rows of a tile. Its 16 sums and the 8 vectors they come from fit the 32 registers."""

CHAIN = 8
"""Products summed in a lane before the lanes are. Of 4 to 32, the fewest that cost less than a tenth."""

ROUNDINGS = 2 + CHAIN + 4
"""Roundings to float32 on a product's way: its two differences from the centre, the chain, and four halvings
of 16 lanes."""

LANES = 16
"""Sums a pair has: two vectors of float64, so that one multiply and add need not wait for the last."""


class Precision(NamedTuple):
    """The type of the points: LLVM's name, and its entries in a vector."""

    kind: str
    lanes: int

    @property
    def vector(self) -> str:
        """LLVM's name of a vector of them."""
        return f"<{self.lanes} x {self.kind}>"

    @property
    def fma(self) -> str:
        """LLVM's fused multiply and add of such vectors."""
        return f"@llvm.fma.v{self.lanes}f{32 if self.kind == 'float' else 64}"


SINGLE, DOUBLE = Precision("float", 16), Precision("double", 8)

PRECISIONS: dict[type[np.floating], Precision] = {np.float32: SINGLE, np.float64: DOUBLE}


class GramKernel:
    """The kernel's machine code for this processor.

    Raises:
        UnsuitedProcessor: If the processor has no 512-bit vectors.
        Exception: What `MachineCode` does.
    """

    def __init__(self) -> None:
        self._code = {
            dtype: MachineCode(partial(_assembly, precision), {"gram": "piippipipi"})
            for dtype, precision in PRECISIONS.items()
        }
        self._pairs = MachineCode(lambda has_wide_vectors: pairs_code(), {"pairs": "piipip"})

    def products(
        self, block: Rows, centre: int | None, dtype: type[np.floating], *, origin: bool = False
    ) -> Matrix:
        """Inner products of the rows within the block, less the row `centre`.

        Args:
            centre: Index of the row to subtract from all; None: nothing is subtracted.
            dtype: What differences and products are formed in.
            origin: Whether the zero vector is one more point, the last.

        Returns:
            (n, n) float64, symmetric; (n + 1, n + 1) with the origin.
        """
        num_points = len(block) + origin
        width = _filled(num_points)
        out = np.zeros((width, width))
        order = np.arange(num_points)
        self._run(dtype, block, order, centre, _triangle(width), out)
        np.copyto(out, out.T, where=_below(width))
        return out[:num_points, :num_points]

    def products_of(
        self, block: Rows, centre: int | None, indices: NDArray[np.intp]
    ) -> tuple[Matrix, NDArray[np.float64]]:
        """Inner products of some rows with all, (c, n) float64, and each row's with itself, (n,) float64.

        The (c,) indices name no row twice; `centre` is as for `products`.
        """
        num_rows, few = len(block), len(indices)
        order = np.concatenate([indices, np.delete(np.arange(num_rows), indices)])
        width, strip = _filled(num_rows), _filled(few)
        out = np.zeros((strip + TILE, width))
        self._run(np.float64, block, order, centre, _strip(strip, width), out)
        products, squares = np.empty((few, num_rows)), np.empty(num_rows)
        products[:, order] = out[:few, :num_rows]
        position = np.arange(num_rows)
        squares[order] = out[strip + position % TILE, position]
        return products, squares

    def squares_of_pairs(self, block: Rows, pairs: NDArray[np.intp]) -> NDArray[np.float64]:
        """Squared distances within the block of pairs of rows, (p,) float64, from their differences.

        The (p, 2) pairs are of row indices, p >= 1; n stands for the zero vector.
        """
        rows, addresses = _with_the_zero_vector(block)
        sums = np.zeros((len(pairs), LANES))
        numbers = np.ascontiguousarray(pairs, np.int64)
        self._pairs("pairs", addresses, len(addresses), len(rows[0]), numbers, len(numbers), sums)
        squares: NDArray[np.float64] = sums.sum(axis=1)
        return squares

    def squares_from(self, block: Rows, indices: NDArray[np.intp]) -> Matrix:
        """Squared distances within the block of the rows at (c,) indices to all, (c, n) float64."""
        num_rows, few = len(block), len(indices)
        pairs = np.stack([np.repeat(indices, num_rows), np.tile(np.arange(num_rows), few)], axis=1)
        return self.squares_of_pairs(block, pairs).reshape(few, num_rows)

    def _run(
        self,
        dtype: type[np.floating],
        block: Rows,
        order: NDArray[np.intp],
        centre: int | None,
        tiles: NDArray[np.int64],
        out: Matrix,
    ) -> None:
        """Adds the products of the points in this order to `out`; the point n is the zero vector."""
        block, addresses = _with_the_zero_vector(block)
        stride = CHUNK + LINE_BYTES // np.dtype(dtype).itemsize
        points = aligned(f"points {np.dtype(dtype)}", (_filled(len(order)), stride), dtype)
        points[len(order) :] = 0.0
        size, middle = (len(order), len(block[0])), int(addresses[-1 if centre is None else centre])
        self._code[dtype](
            "gram", addresses[order], *size, middle, points, stride, tiles, len(tiles), out, out.shape[1]
        )


def _assembly(precision: Precision, has_wide_vectors: bool) -> str:
    if not has_wide_vectors:
        raise UnsuitedProcessor("the kernel for inner products needs a processor with 512-bit vectors")
    return gram_code(precision)


def _with_the_zero_vector(block: Rows) -> tuple[Rows, NDArray[np.intp]]:
    """What `contiguous_rows` gives, and the address of the zero vector after the others."""
    nothing = workspace("nothing", (len(block[0]),), np.float32)
    nothing[:] = 0.0
    rows, addresses = contiguous_rows(block)
    return rows, np.append(addresses, nothing.ctypes.data)


def _filled(num_points: int) -> int:
    """The number of points in whole tiles."""
    return -(-num_points // TILE) * TILE


@functools.lru_cache(maxsize=64)
def _triangle(width: int) -> NDArray[np.int64]:
    """The tiles on and above the diagonal of a square of this width; see `gram_code`."""
    starts = range(0, width, TILE)
    return np.array([(a, b, a * width + b) for a in starts for b in starts if a <= b], np.int64)


@functools.lru_cache(maxsize=64)
def _strip(height: int, width: int) -> NDArray[np.int64]:
    """The tiles of a strip of this height, and below it in one row those on the diagonal."""
    starts = range(0, width, TILE)
    strip = [(a, b, a * width + b) for a in range(0, height, TILE) for b in starts]
    return np.array([*strip, *((a, a, height * width + a) for a in starts)], np.int64)


@functools.lru_cache(maxsize=64)
def _below(width: int) -> NDArray[np.bool_]:
    return np.tri(width, k=-1, dtype=np.bool_)


@functools.cache
def gram_kernel() -> GramKernel | None:
    """The kernel, unless it cannot be had here or does not give the products."""
    return checked_kernel(GramKernel, _gives_the_products, "inner products are left to BLAS")


def _gives_the_products(kernel: GramKernel) -> bool:
    entries = np.arange(7 * 1300)
    rows = (np.sin(entries) * 2.0 ** (entries % 13 - 6)).astype(np.float32).reshape(7, 1300)
    points = np.subtract(rows, rows[2], dtype=np.float64)
    magnitudes = np.abs(points) @ np.abs(points).T
    for dtype in PRECISIONS:
        allowed = ROUNDINGS * np.finfo(dtype).eps * magnitudes
        if not (np.abs(kernel.products(rows, 2, dtype) - points @ points.T) <= allowed).all():
            return False
    pairs = np.array([[0, 3], [6, 1], [5, len(rows)]])
    wide = np.vstack([rows, np.zeros_like(rows[:1])]).astype(np.float64)
    squares = np.square(wide[pairs[:, 0]] - wide[pairs[:, 1]]).sum(axis=1)
    return bool(np.allclose(kernel.squares_of_pairs(rows, pairs), squares, rtol=1e-12, atol=0.0))


def gram_code(precision: Precision) -> str:
    """The assembly of ``gram``.

    ``gram(rows, n, b, centre, points, stride, tiles, num_tiles, out, width)``: `rows` points to the addresses
    of n rows of b float32 entries, `centre` to one more row; `points` to scratch memory, aligned to 64 bytes,
    for rows of `CHUNK` entries `stride` apart; `tiles` to int64 triples: the first of `TILE` rows of points,
    the first of `TILE` others, and where in `out`, `width` float64 entries a row, their products are added.
    """
    return "\n".join([_tile(precision), _gram(precision)])


def _tile(precision: Precision) -> str:
    kind, lanes, vector = precision.kind, precision.lanes, precision.vector
    pairs = [(i, j) for i in range(TILE) for j in range(TILE)]
    totals, wide = TILE * TILE // lanes, f"<{lanes} x double>"
    lines = [
        "define internal void @tile(ptr %a0, ptr %b0, i64 %stride, i64 %columns, ptr %ahead, ptr %out,"
        " i64 %width) {",
        "entry:",
    ]
    for side in "ab":
        for i in range(1, TILE):
            lines += [
                f"  %{side}.begin{i} = mul i64 %stride, {i}",
                f"  %{side}{i} = getelementptr {kind}, ptr %{side}0, i64 %{side}.begin{i}",
            ]
    lines += ["  br label %chain", "chain:", "  %start = phi i64 [0, %entry], [%stop, %reduce]"]
    lines += [
        f"  %total{g} = phi {wide} [zeroinitializer, %entry], [%total.next{g}, %reduce]"
        for g in range(totals)
    ]
    lines += [
        f"  %full = add i64 %start, {CHAIN * lanes}",
        "  %is.short = icmp ult i64 %columns, %full",
        "  %stop = select i1 %is.short, i64 %columns, i64 %full",
        "  br label %step",
        "step:",
        "  %k = phi i64 [%start, %chain], [%k.next, %step]",
    ]
    lines += [
        f"  %sum{i}.{j} = phi {vector} [zeroinitializer, %chain], [%next{i}.{j}, %step]" for i, j in pairs
    ]
    lines += [
        "  %ahead.at = getelementptr float, ptr %ahead, i64 %k",
        "  call void @llvm.prefetch.p0(ptr %ahead.at, i32 0, i32 2, i32 1)",
    ]
    for side in "ab":
        for i in range(TILE):
            lines += [
                f"  %{side}.at{i} = getelementptr {kind}, ptr %{side}{i}, i64 %k",
                f"  %{side}.value{i} = load {vector}, ptr %{side}.at{i}, align 64",
            ]
    lines += [
        f"  %next{i}.{j} = call {vector} {precision.fma}({vector} %a.value{i}, {vector} %b.value{j},"
        f" {vector} %sum{i}.{j})"
        for i, j in pairs
    ]
    lines += [
        f"  %k.next = add i64 %k, {lanes}",
        "  %more = icmp ult i64 %k.next, %stop",
        "  br i1 %more, label %step, label %reduce",
        "reduce:",
    ]
    sums = [f"%next{i}.{j}" for i, j in pairs]
    half = lanes // 2
    while half:
        sums = [_add_halves(lines, vector, half, *sums[p : p + 2]) for p in range(0, len(sums), 2)]
        half //= 2
    for g, value in enumerate(sums):
        if kind == "float":
            lines.append(f"  %wide{g} = fpext {vector} {value} to {wide}")
            value = f"%wide{g}"
        lines.append(f"  %total.next{g} = fadd {wide} %total{g}, {value}")
    lines += ["  %again = icmp ult i64 %stop, %columns", "  br i1 %again, label %chain, label %store"]
    lines += ["store:", *_store_rows(lanes, wide), "  ret void", "}"]
    return "\n".join(lines)


def _add_halves(lines: list[str], vector: str, half: int, first: str, second: str) -> str:
    """Of two vectors of sums in segments of 2 `half` lanes, one of all of them in segments of `half`."""
    lanes = 2 * int(vector[1:].split()[0])
    name = f"{first[1:]}.by{half}"
    for part, shift in (("low", 0), ("high", half)):
        chosen = [s + shift + lane for s in range(0, lanes, 2 * half) for lane in range(half)]
        indices = ", ".join(f"i32 {lane}" for lane in chosen)
        mask = f"<{len(chosen)} x i32> <{indices}>"
        lines.append(f"  %{name}.{part} = shufflevector {vector} {first}, {vector} {second}, {mask}")
    lines.append(f"  %{name} = fadd {vector} %{name}.low, %{name}.high")
    return f"%{name}"


def _store_rows(lanes: int, wide: str) -> list[str]:
    lines = []
    row = f"<{TILE} x double>"
    for i in range(TILE):
        first = TILE * i % lanes
        mask = ", ".join(f"i32 {first + j}" for j in range(TILE))
        total = f"{wide} %total.next{TILE * i // lanes}"
        lines += [
            f"  %begin{i} = mul i64 %width, {i}",
            f"  %to{i} = getelementptr double, ptr %out, i64 %begin{i}",
            f"  %row{i} = shufflevector {total}, {wide} poison, <{TILE} x i32> <{mask}>",
            f"  %old{i} = load {row}, ptr %to{i}, align 8",
            f"  %new{i} = fadd {row} %old{i}, %row{i}",
            f"  store {row} %new{i}, ptr %to{i}, align 8",
        ]
    return lines


def _gram(precision: Precision) -> str:
    kind, lanes = precision
    vector, given, mask = precision.vector, f"<{lanes} x float>", f"<{lanes} x i1>"
    load = f"{given} @llvm.masked.load.v{lanes}f32.p0(ptr"
    x, c, widening = "%x", "%c", ""
    if kind == "double":
        x, c = "%x.wide", "%c.wide"
        widening = f"  {x} = fpext {given} %x to {vector}\n  {c} = fpext {given} %c to {vector}"
    return f"""
declare {vector} {precision.fma}({vector}, {vector}, {vector})
declare {load}, i32, {mask}, {given})
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)

define void @gram(ptr %rows, i64 %n, i64 %b, ptr %centre, ptr %points, i64 %stride, ptr %tiles,
                  i64 %num.tiles, ptr %out, i64 %width) {{
entry:
  br label %chunk
chunk:
  %start = phi i64 [0, %entry], [%start.next, %chunk.end]
  %start.next = add i64 %start, {CHUNK}
  %left = sub i64 %b, %start
  %is.last = icmp ult i64 %left, {CHUNK}
  %columns = select i1 %is.last, i64 %left, i64 {CHUNK}
  %rounded = add i64 %columns, {lanes - 1}
  %filled = and i64 %rounded, {-lanes}
{splat("columns.all", lanes, "i64", "%columns")}
  %c.begin = getelementptr float, ptr %centre, i64 %start
  br label %row
row:
  %i = phi i64 [0, %chunk], [%i.next, %row.end]
  %row.at = getelementptr ptr, ptr %rows, i64 %i
  %row.begin = load ptr, ptr %row.at
  %x.begin = getelementptr float, ptr %row.begin, i64 %start
  %point.offset = mul i64 %i, %stride
  %point = getelementptr {kind}, ptr %points, i64 %point.offset
  br label %subtract
subtract:
  %k = phi i64 [0, %row], [%k.next, %subtract]
{inside("k", lanes)}
  %x.at = getelementptr float, ptr %x.begin, i64 %k
  %c.at = getelementptr float, ptr %c.begin, i64 %k
  %x = call {load} %x.at, i32 4, {mask} %k.inside, {given} zeroinitializer)
  %c = call {load} %c.at, i32 4, {mask} %k.inside, {given} zeroinitializer)
{widening}
  %difference = fsub {vector} {x}, {c}
  %point.at = getelementptr {kind}, ptr %point, i64 %k
  store {vector} %difference, ptr %point.at, align 64
  %k.next = add i64 %k, {lanes}
  %more.columns = icmp ult i64 %k.next, %filled
  br i1 %more.columns, label %subtract, label %row.end
row.end:
  %i.next = add i64 %i, 1
  %more.rows = icmp ult i64 %i.next, %n
  br i1 %more.rows, label %row, label %tile
tile:
  %t = phi i64 [0, %row.end], [%t.next, %tile]
  %triple.offset = mul i64 %t, 3
  %a.at = getelementptr i64, ptr %tiles, i64 %triple.offset
  %b.at = getelementptr i64, ptr %a.at, i64 1
  %to.at = getelementptr i64, ptr %a.at, i64 2
  %a.row = load i64, ptr %a.at
  %b.row = load i64, ptr %b.at
  %a.offset = mul i64 %a.row, %stride
  %b.offset = mul i64 %b.row, %stride
  %to.offset = load i64, ptr %to.at
  %a = getelementptr {kind}, ptr %points, i64 %a.offset
  %b.rows = getelementptr {kind}, ptr %points, i64 %b.offset
  %to = getelementptr double, ptr %out, i64 %to.offset
  %is.row = icmp ult i64 %t, %n
  %fetched = select i1 %is.row, i64 %t, i64 0
  %fetched.at = getelementptr ptr, ptr %rows, i64 %fetched
  %fetched.begin = load ptr, ptr %fetched.at
  %ahead = getelementptr float, ptr %fetched.begin, i64 %start.next
  call void @tile(ptr %a, ptr %b.rows, i64 %stride, i64 %filled, ptr %ahead, ptr %to, i64 %width)
  %t.next = add i64 %t, 1
  %more.tiles = icmp ult i64 %t.next, %num.tiles
  br i1 %more.tiles, label %tile, label %chunk.end
chunk.end:
  %more = icmp ult i64 %start.next, %b
  br i1 %more, label %chunk, label %done
done:
  ret void
}}
"""


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
{splat("over.all", LANES, "i64", "%over")}
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
