"""Vectors of numbers as Numba values, for kernels that say themselves what a vector instruction does.

Numba compiles loops over single numbers and leaves it to LLVM to find vectors in them; of a sorting network
it finds them in one and a half times the time. With these few functions a kernel reads and writes vectors,
adds, subtracts, multiplies and divides them by the usual operators, and LLVM has only registers to choose.
Each operation is the IEEE one, lane by lane; nothing is fused but where `fma` says so.

`LANES` float32 entries fill a vector register of a processor with 512-bit vectors. Others get half as many:
one register with AVX2, two of 128 bits with SSE or NEON.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

PROCESSOR: tuple[str, str, str] = cpu_target.target_context.codegen().magic_tuple()
"""What Numba compiles for: LLVM's names of the system, the processor and its features."""

LANES = 16 if "+avx512f" in PROCESSOR[2].split(",") else 8
"""float32 entries of a vector."""

OPTIONS: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy", "fastmath": False}

entry = njit(**OPTIONS)
"""A function that Python calls; `loader` keeps its machine code in the cache."""

inlined = njit(**OPTIONS, forceinline=True)
"""A part of such functions."""

_ELEMENTS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_BYTES = {types.float32: 4, types.float64: 8}
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)


class VectorType(types.Type):  # type: ignore[misc]
    """So many numbers of one type in a register."""

    def __init__(self, element: types.Type, lanes: int) -> None:
        self.element, self.lanes = element, lanes
        super().__init__(name=f"Vector({element}, {lanes})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: VectorType) -> None:
        super().__init__(manager, vector, ir.VectorType(_ELEMENTS[vector.element], vector.lanes))


def _operator(symbol: Any, instruction: str) -> None:
    @infer_global(symbol)
    class _Typing(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            alike = len(args) == 2 and isinstance(args[0], VectorType) and args[0] == args[1]
            return signature(args[0], *args) if alike else None

    @lower_builtin(symbol, VectorType, VectorType)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_symbol, _instruction)


def _llvm(vector: VectorType) -> ir.VectorType:
    return ir.VectorType(_ELEMENTS[vector.element], vector.lanes)


def _mask(builder: Any, lanes: int, index: Any, stop: Any) -> Any:
    """Which of the lanes from `index` on are below `stop`."""
    places = ir.VectorType(_INT64, lanes)
    numbers = ir.Constant(places, list(range(lanes)))
    left = _filled(builder, places, builder.sub(stop, index))
    return builder.icmp_signed("<", numbers, left)


def _filled(builder: Any, vector: ir.VectorType, value: Any) -> Any:
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_INT32, vector.count), None))


def _suffix(vector: VectorType) -> str:
    """LLVM's name of the vector within an intrinsic's."""
    return f"v{vector.lanes}f{8 * _BYTES[vector.element]}"


def _call(builder: Any, name: str, result: ir.Type, *args: Any) -> Any:
    """A call of an intrinsic of LLVM."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _place(context: Any, builder: Any, sig: Any, args: Any, vector: ir.Type) -> Any:
    """Where the entry args[1] of the array args[0] is."""
    begin = context.make_array(sig.args[0])(context, builder, args[0]).data
    return builder.bitcast(builder.gep(begin, [args[1]]), vector.as_pointer())


def _far_place(builder: Any, address: Any, index: Any, vector: ir.Type) -> Any:
    """Where the float32 entry `index` is, counted from an address."""
    at = builder.add(address, builder.shl(index, ir.Constant(_INT64, 2)))
    return builder.inttoptr(at, vector.as_pointer())


@intrinsic(prefer_literal=True)
def load(typing: Any, array: Any, index: Any, lanes: Any) -> Any:
    """``array[index : index + lanes]``; `lanes` is a constant."""
    vector = VectorType(array.dtype, lanes.literal_value)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _place(context, builder, sig, args, _llvm(vector))
        return builder.load(place, align=_BYTES[array.dtype], typ=_llvm(vector))

    return vector(array, types.int64, lanes), code


@intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """``array[index : index + lanes] = vector``."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _place(context, builder, sig, args, _llvm(vector))
        builder.store(args[2], place, align=_BYTES[array.dtype])
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), code


@intrinsic
def store_until(typing: Any, array: Any, index: Any, stop: Any, vector: Any) -> Any:
    """``array[index : min(index + lanes, stop)] = vector``, as far as it goes."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _place(context, builder, sig, args, _llvm(vector))
        align = ir.Constant(_INT32, _BYTES[array.dtype])
        inside = _mask(builder, vector.lanes, args[1], args[2])
        _call(
            builder, f"llvm.masked.store.{_suffix(vector)}.p0", ir.VoidType(), args[3], place, align, inside
        )
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, vector), code


@intrinsic(prefer_literal=True)
def load_far(typing: Any, address: Any, index: Any, lanes: Any) -> Any:
    """Float32 entries from `index` on of what begins at an address; `lanes` is a constant."""
    vector = VectorType(types.float32, lanes.literal_value)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _far_place(builder, args[0], args[1], _llvm(vector))
        return builder.load(place, align=4, typ=_llvm(vector))

    return vector(types.int64, types.int64, lanes), code


@intrinsic(prefer_literal=True)
def load_far_until(typing: Any, address: Any, index: Any, stop: Any, lanes: Any) -> Any:
    """What `load_far` gives; zeros from the entry `stop` on, which is not read."""
    vector = VectorType(types.float32, lanes.literal_value)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = _llvm(vector)
        place = _far_place(builder, args[0], args[1], kind)
        inside, zeros = _mask(builder, vector.lanes, args[1], args[2]), ir.Constant(kind, None)
        name, align = f"llvm.masked.load.{_suffix(vector)}.p0", ir.Constant(_INT32, 4)
        return _call(builder, name, kind, place, align, inside, zeros)

    return vector(types.int64, types.int64, types.int64, lanes), code


@intrinsic
def fetch(typing: Any, address: Any, index: Any) -> Any:
    """Ask for the cache line of a float32 entry, counted from an address; past the end is harmless."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _far_place(builder, args[0], args[1], ir.IntType(8))
        read, near, data = (ir.Constant(_INT32, number) for number in (0, 2, 1))
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), place, read, near, data)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic(prefer_literal=True)
def splat(typing: Any, value: Any, lanes: Any) -> Any:
    """A vector whose `lanes`, a constant, all hold the value."""
    vector = VectorType(value, lanes.literal_value)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _filled(builder, _llvm(vector), args[0])

    return vector(value, lanes), code


@intrinsic
def wide(typing: Any, vector: Any) -> Any:
    """The vector in float64."""
    result = VectorType(types.float64, vector.lanes)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return args[0] if vector == result else builder.fpext(args[0], _llvm(result))

    return result(vector), code


@intrinsic
def narrow(typing: Any, vector: Any) -> Any:
    """The float64 vector rounded to float32."""
    result = VectorType(types.float32, vector.lanes)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fptrunc(args[0], _llvm(result))

    return result(vector), code


@intrinsic
def where_less(typing: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    """In each lane x if a < b, else y."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return x(a, b, x, y), code


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """A b + c, rounded once."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.fma.{_suffix(a)}", _llvm(a), *args)

    return a(a, a, a), code


@intrinsic
def lane_sums(typing: Any, vectors: Any) -> Any:
    """The sum of the lanes of each of 16 vectors: a vector of 16, in float64.

    Lanes are added by halves: the lower half to the upper one, until one is left.
    """
    vector, result = vectors.dtype, VectorType(types.float64, vectors.count)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values = [builder.extract_value(args[0], index) for index in range(vectors.count)]
        half = vector.lanes // 2
        while half:
            values = [_halved(builder, a, b, half) for a, b in zip(values[::2], values[1::2], strict=True)]
            half //= 2
        while len(values) > 1:
            values = [_joined(builder, a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
        return values[0] if vector.element == types.float64 else builder.fpext(values[0], _llvm(result))

    return result(vectors), code


def _halved(builder: Any, first: Any, second: Any, half: int) -> Any:
    """Of two vectors of sums in segments of 2 `half` lanes, one of all of them in segments of `half`."""
    lanes = 2 * first.type.count
    segments = range(0, lanes, 2 * half)
    lower = [segment + lane for segment in segments for lane in range(half)]
    chosen = ir.VectorType(_INT32, len(lower))
    low, high = (
        builder.shuffle_vector(first, second, ir.Constant(chosen, [lane + shift for lane in lower]))
        for shift in (0, half)
    )
    return builder.fadd(low, high)


def _joined(builder: Any, first: Any, second: Any) -> Any:
    lanes = 2 * first.type.count
    return builder.shuffle_vector(
        first, second, ir.Constant(ir.VectorType(_INT32, lanes), list(range(lanes)))
    )


@inlined
def minimum(a, b):  # type: ignore[no-untyped-def]
    """The smaller in each lane; b where neither is."""
    return where_less(a, b, a, b)


@inlined
def maximum(a, b):  # type: ignore[no-untyped-def]
    """The larger in each lane; a where neither is: with `minimum`, both values are kept."""
    return where_less(a, b, b, a)
