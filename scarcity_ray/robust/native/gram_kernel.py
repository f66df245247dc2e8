"""Inner products of centred rows as LLVM assembly, for processors with 512-bit vectors.

Columns are taken `CHUNK` at a time: the rows' entries less the centre's go to a scratch array that stays in
the second-level cache, while the next chunk is fetched, and tiles of `TILE` by `TILE` inner products are
formed from there in registers. A tile's products run along the columns in the lanes of a vector. Each lane
sums `CHAIN` products, by fused multiply and add; the lanes are summed pairwise; these sums, and all sums of
sums, are float64.

There is no fast-math flag, so that every operation is the IEEE one, in the order written: the bits do not
depend on how many rows there are, nor on the processor.

*Guarantees*
    - A float32 inner product is off by at most `ROUNDINGS` 2^-24 times the sum of its products' magnitudes.
    - Equal rows have equal inner products.
"""

from __future__ import annotations

from typing import NamedTuple

CHUNK = 512
"""Columns whose points are formed at once: 4 KiB of a row at most, 200 to 400 KiB of a hundred rows."""

TILE = 4
"""Rows of a tile. Its 16 sums and the 8 vectors they come from fit the 32 registers."""

CHAIN = 8
"""Products summed in a lane before the lanes are. Of 4 to 32, the fewest that cost less than a tenth."""

ROUNDINGS = 2 + CHAIN + 4
"""Roundings to float32 on a product's way: its two differences from the centre, the chain, and four halvings
of 16 lanes."""


class Precision(NamedTuple):
    """What points are held in: LLVM's name of the type, and its entries in a vector."""

    kind: str
    lanes: int

    @property
    def vector(self) -> str:
        """LLVM's name of a vector of them."""
        return f"<{self.lanes} x {self.kind}>"


SINGLE, DOUBLE = Precision("float", 16), Precision("double", 8)


def gram_code(precision: Precision) -> str:
    """The assembly of ``gram``.

    ``gram(rows, n, b, centre, points, stride, tiles, num_tiles, out, width)``: `rows` points to the addresses
    of n rows of b float32 entries, `centre` to one more row; `points` to scratch memory, aligned to 64 bytes,
    for rows of `CHUNK` entries `stride` apart; `tiles` to int64 triples: the first of `TILE` rows of points,
    the first of `TILE` others, and where in `out`, `width` float64 entries a row, their products are added.
    """
    return "\n".join([_declarations(precision), _tile(precision), _gram(precision)])


def _declarations(precision: Precision) -> str:
    vector, bits = precision.vector, {"float": 32, "double": 64}[precision.kind]
    loaded, mask = f"<{precision.lanes} x float>", f"<{precision.lanes} x i1>"
    return f"""
declare {vector} @llvm.fma.v{precision.lanes}f{bits}({vector}, {vector}, {vector})
declare {loaded} @llvm.masked.load.v{precision.lanes}f32.p0(ptr, i32, {mask}, {loaded})
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
"""


def _tile(precision: Precision) -> str:
    kind, lanes, vector = precision.kind, precision.lanes, precision.vector
    pairs = [(i, j) for i in range(TILE) for j in range(TILE)]
    totals, wide = TILE * TILE // lanes, f"<{lanes} x double>"
    fma = f"@llvm.fma.v{lanes}f{'32' if kind == 'float' else '64'}"
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
        f"  %next{i}.{j} = call {vector} {fma}({vector} %a.value{i}, {vector} %b.value{j},"
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
    given, mask, places = f"<{lanes} x float>", f"<{lanes} x i1>", f"<{lanes} x i64>"
    numbers = ", ".join(f"i64 {lane}" for lane in range(lanes))
    load = f"call {given} @llvm.masked.load.v{lanes}f32.p0(ptr"
    x, c, widening = "%x", "%c", ""
    if kind == "double":
        x, c = "%x.wide", "%c.wide"
        to = f"{given} {{}} to {precision.vector}"
        widening = f"  {x} = fpext {to.format('%x')}\n  {c} = fpext {to.format('%c')}"
    return f"""
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
  %columns.first = insertelement {places} poison, i64 %columns, i64 0
  %columns.all = shufflevector {places} %columns.first, {places} poison, <{lanes} x i32> zeroinitializer
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
  %k.first = insertelement {places} poison, i64 %k, i64 0
  %k.all = shufflevector {places} %k.first, {places} poison, <{lanes} x i32> zeroinitializer
  %column = add {places} %k.all, <{numbers}>
  %inside = icmp ult {places} %column, %columns.all
  %x.at = getelementptr float, ptr %x.begin, i64 %k
  %c.at = getelementptr float, ptr %c.begin, i64 %k
  %x = {load} %x.at, i32 4, {mask} %inside, {given} zeroinitializer)
  %c = {load} %c.at, i32 4, {mask} %inside, {given} zeroinitializer)
{widening}
  %difference = fsub {precision.vector} {x}, {c}
  %point.at = getelementptr {kind}, ptr %point, i64 %k
  store {precision.vector} %difference, ptr %point.at, align 64
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
