"""The kernels of Layer 1 on tensors: what `arrays`, `measures` and `rules` do by NumPy, where the rows lie.

`TensorRows.map_blocks` is a driver (`arrays.blocks.MapBlocks`) with one block, all columns. In place of each
of NumPy's kernels it runs its twin here (`TWINS`), in tiles of columns that bound the memory. Small results,
such as the n x n inner products, come back as NumPy's arrays, so that every decision is made by the code that
decides for NumPy's rows. Only the result stays on the device.

Float32 products are summed by matrix products over `CHUNK` columns, and those sums in float64. A product
passes two roundings in its factors' differences from the centre, one of its own, and CHUNK - 1 additions at
most, in whatever order the library adds. So with R = CHUNK + 2 a squared distance is off by at most 2 R u
(g_ii + g_jj), u = 2^-24 (`measures.approximate_distances` has the argument); (2 R + 1) u is claimed. That
holds for IEEE float32: TF32, bfloat16 and autocast are switched off around the products, and a product whose
exact value needs 23 bits is checked in each call. If it is wrong, products are float64.

Guarantees:
    A selection is that of the float64 definition, whatever precision torch is set to.
    Torch's settings are afterwards what they were.
    No tensor that is made has more than the entries of a tile, but for the result.
    The result lies on the rows' device, and is of their type if that is float32, float16 or bfloat16.
    Inputs are never written to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scarcity_ray.errors import UsageError
from scarcity_ray.robust.arrays.blocks import MapBlocks, Matrix, Rows, column_blocks
from scarcity_ray.robust.arrays.mixed_rows import Means, Mixture
from scarcity_ray.robust.measures.approximate_distances import (
    FLOAT64_ROUNDING,
    HEAD,
    ApproximateGram,
    approximate_gram_block,
    equal_block,
    rows_block,
)
from scarcity_ray.robust.measures.distances import gram_block, pair_block
from scarcity_ray.robust.measures.rows import squares_block, squares_from_block
from scarcity_ray.robust.outliers import LOOK_COLUMNS, BlockReport, report_block
from scarcity_ray.robust.rules.base import Rule, Selection, combine_block
from scarcity_ray.robust.rules.coordinatewise import CoordinatewiseRule
from scarcity_ray.robust.rules.mean import RowRule
from scarcity_ray.robust.tensors.detection import REMEDY
from scarcity_ray.robust.tensors.order_statistics import window_ends, window_mean

CHUNK = 256
"""Columns that one float32 sum runs over: fewer leave less in doubt, and write more sums."""

ROUNDING = (2 * (CHUNK + 2) + 1) * 2.0**-24
"""Bound on the error of a squared distance, relative to (g_ii + g_jj)."""

LEAST_NORM = 2.0**-60
"""Least g_ii of a row unlike the centre: what a device loses that flushes subnormals is nothing beside it."""

CHUNK_FLOAT64 = 1024
"""The same in float64; a tile is a multiple of it."""

TILE_ENTRIES = {"cpu": 2**20}
"""Entries of a tile, by the type of device."""
ELSEWHERE = 2**24
"""The same on any other device; a tile takes about 20 bytes an entry (sorting makes int64 indices)."""

NUMPYS_DEVICES: tuple[str, ...] = ("cpu",)
"""Types of device whose tensors NumPy reads in place and aggregates faster; tests of this module set none."""

KEPT = (torch.float32, torch.float16, torch.bfloat16)
"""Types in which a result is given; of rows of another type it is float32."""

NUMPYS_FLOATS = (torch.float16, torch.float32, torch.float64)
"""Floating point types that NumPy has."""


class TensorRows:
    """n rows of one length and type on one device, never written to.

    Args:
        rows: (n, d) tensor, or n tensors of length d.
        factors: (n,) float64 on the device, by which the rows are multiplied where they are read, in float64,
            and rounded to float32; None: they are as they are.
        result_type: None: the rows' type if that is in `KEPT`, else float32.
    """

    def __init__(
        self,
        rows: Tensor | list[Tensor],
        factors: Tensor | None = None,
        result_type: torch.dtype | None = None,
    ) -> None:
        self.rows = rows
        self.factors = factors
        self.num_columns = len(rows[0]) if len(rows) else 0
        self.dtype: torch.dtype = rows[0].dtype if len(rows) else torch.float32
        self.result_type = result_type or (self.dtype if self.dtype in KEPT else torch.float32)
        self.device: torch.device = rows[0].device if len(rows) else torch.device("cpu")

    @classmethod
    def given(cls, updates: object) -> TensorRows:
        """Check what was given as rows, as `measures.rows.as_rows` does, and read it by DLPack.

        Raises:
            UsageError: For a wrong shape, type or device.
        """
        if not isinstance(updates, list | tuple):
            matrix = _as_tensor(updates, "updates")
            if matrix.ndim != 2:
                raise UsageError(f"updates must be rows of a 2-D tensor, got shape {tuple(matrix.shape)}")
            rows: Tensor | list[Tensor] = matrix
            if matrix.shape[1] == 0:
                raise UsageError("rows must have at least one entry")
        else:
            rows = [_as_tensor(row, f"row {index}") for index, row in enumerate(updates)]
            for index, row in enumerate(rows):
                if row.ndim != 1 or row.shape != rows[0].shape or len(row) == 0:
                    raise UsageError(
                        f"row {index} must be 1-D and as long as row 0, got shape {tuple(row.shape)} "
                        f"and {tuple(rows[0].shape)}"
                    )
                if row.dtype != rows[0].dtype or row.device != rows[0].device:
                    raise UsageError(
                        f"row {index} is {row.dtype} on {row.device}, row 0 is {rows[0].dtype} on "
                        f"{rows[0].device}: give rows of one type on one device"
                    )
        return cls(rows)

    @classmethod
    def copied(cls, rows: Rows, device: str) -> TensorRows:
        """NumPy's float32 rows as one tensor on a device; they pass through memory of one row."""
        on_device = torch.device(device)
        matrix = torch.empty(
            (len(rows), len(rows[0]) if len(rows) else 0), dtype=torch.float32, device=on_device
        )
        pinned = on_device.type == "cuda"
        passing = torch.empty(matrix.shape[1], dtype=torch.float32, device="cpu", pin_memory=pinned)
        for row, out in zip(rows, matrix, strict=True):
            np.copyto(passing.numpy(), row)
            out.copy_(passing)
        return cls(matrix)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def are_numpys(self) -> bool:
        """Whether NumPy's path aggregates them."""
        return self.device.type in NUMPYS_DEVICES

    def as_numpys(self) -> list[NDArray[Any]]:
        """The rows as NumPy reads them, in place; those of a type that it has not, as float32."""
        is_numpys = not self.dtype.is_floating_point or self.dtype in NUMPYS_FLOATS
        return [(row if is_numpys else row.float()).numpy() for row in self.rows]

    def like_rows(self, vector: NDArray[np.float32]) -> Tensor:
        """A result of NumPy's as these rows give one."""
        return torch.from_numpy(vector).to(self.result_type)

    def norms(self) -> NDArray[np.float64]:
        """See `measures.rows.row_norms`."""
        with torch.no_grad():
            return np.sqrt(_squares(self))

    def from_numpys(self, vector: NDArray[np.float32]) -> Tensor:
        """A float32 vector on the rows' device."""
        return torch.from_numpy(vector).to(self.device)

    def to_numpys(self, vector: Tensor) -> NDArray[np.float32]:
        """A float32 vector from there."""
        array: NDArray[np.float32] = vector.cpu().numpy()
        return array

    def scaled(self, factors: NDArray[np.float64] | None) -> TensorRows:
        """These rows times (n,) factors, formed where they are read; a result of theirs is float32."""
        known = None if factors is None else torch.from_numpy(factors).to(self.device)
        return TensorRows(self.rows, known, torch.float32)

    def scaled_blocks(self, factors: NDArray[np.float64] | None, seconds: float) -> MapBlocks:
        """The driver of `scaled`, whatever time it would take elsewhere."""
        return self.scaled(factors).map_blocks

    def clipped(self, vector: Tensor, clip_norm: float) -> Tensor:
        """`measures.rows.clip_vector` of a finite (d,) tensor, where it lies: float32."""
        alone = TensorRows([vector])
        norm = float(alone.norms()[0])
        scaled = alone.scaled(np.array([clip_norm / norm if norm > clip_norm else 1.0]))
        return scaled.result((columns, scaled.tile(columns)[0]) for columns in scaled.columns())

    def map_blocks(self, kernel: Callable[..., Any], /, *args: Any) -> Iterable[Any]:
        """The kernel's twin on all columns, as one block.

        Raises:
            UsageError: For a kernel that has none.
        """
        twin = TWINS.get(kernel)
        if twin is None:
            raise UsageError(f"{kernel.__name__} is not computed on tensors: {REMEDY}")
        with torch.no_grad():
            return [twin(self, *args)]

    def finite(self) -> tuple[TensorRows, list[int]]:
        """The rows whose entries are all finite as float32, and their indices; these rows if all are."""
        finite = torch.ones(len(self), dtype=torch.bool, device=self.device)
        with torch.no_grad():
            for columns in self.columns():
                tile = self.raw_tile(columns)
                # Both are NaN where an entry is; `isfinite` of the tile would write four tensors of its size.
                finite &= torch.isfinite(tile.amax(dim=1)) & torch.isfinite(tile.amin(dim=1))
        kept = torch.nonzero(finite).flatten().tolist()
        if len(kept) == len(self):
            return self, kept
        return TensorRows([self.rows[index] for index in kept]), kept

    def head_norms(self) -> NDArray[np.float64]:
        """See `measures.approximate_distances.head_norms`."""
        with torch.no_grad():
            head = self.tile(slice(0, HEAD)).double()
            return _numpy(torch.linalg.vector_norm(head, dim=1))

    def tile(self, columns: slice, indices: Sequence[int] | None = None) -> Tensor:
        """The entries in `columns` of the rows, or of those at `indices`, as float32."""
        return self.raw_tile(columns, indices).to(torch.float32)

    def raw_tile(self, columns: slice, indices: Sequence[int] | None = None) -> Tensor:
        """What `tile` gives, in the rows' own type if that is in `KEPT` and they are not scaled."""
        if indices is not None and len(indices) == len(self):
            indices = None
        taken = None if indices is None else torch.tensor(list(indices), device=self.device)
        if isinstance(self.rows, list):
            some = self.rows if indices is None else [self.rows[index] for index in indices]
            tile = torch.stack([row[columns] for row in some])
        else:
            tile = self.rows[:, columns] if taken is None else self.rows[:, columns][taken]
        tile = tile if tile.dtype in KEPT else tile.to(torch.float32)
        if self.factors is None:
            return tile
        factors = self.factors if taken is None else self.factors[taken]
        return (tile * factors[:, None]).to(torch.float32)

    def tiles(self) -> Iterator[Tensor]:
        """All tiles, in order."""
        return (self.tile(columns) for columns in self.columns())

    def columns(self) -> list[slice]:
        """The columns of each tile."""
        entries = TILE_ENTRIES.get(self.device.type, ELSEWHERE)
        width = max(entries // (len(self) + 1) // CHUNK_FLOAT64, 1) * CHUNK_FLOAT64  # 1 more for the origin
        return [
            slice(start, min(start + width, self.num_columns)) for start in range(0, self.num_columns, width)
        ]

    def result(self, values: Iterable[tuple[slice, Tensor]]) -> Tensor:
        """The result from its float64 values in each tile: rounded to float32, then to its type."""
        vector = torch.empty(self.num_columns, dtype=self.result_type, device=self.device)
        for columns, value in values:
            vector[columns] = value.to(torch.float32)
        return vector


def _as_tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        tensor = value.detach()
    elif isinstance(value, np.ndarray):
        raise UsageError(f"{what} is a NumPy array among tensors: give rows of one kind")
    elif hasattr(value, "__dlpack__") or hasattr(value, "__cuda_array_interface__"):
        tensor = _read_in_place(value, what)
    else:
        raise UsageError(f"{what} is no tensor, but {type(value).__name__}: give rows of one kind")
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        raise UsageError(f"{what} must be a dense tensor with values, got {tensor.layout} on {tensor.device}")
    if tensor.dtype.is_complex or tensor.dtype == torch.bool or tensor.is_quantized:
        raise UsageError(f"{what} must hold real numbers, got {tensor.dtype}")
    if tensor.device.type == "mps":
        raise UsageError(f"{what} lies on mps, which has no float64: {REMEDY}")
    return tensor.resolve_neg()


def _read_in_place(value: Any, what: str) -> Tensor:
    try:
        if hasattr(value, "__dlpack__"):
            return torch.from_dlpack(value)
        torch.cuda.synchronize()  # torch does not wait for the stream that writes it (CUDA's array interface)
        return torch.as_tensor(value)
    except (AssertionError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"{what} is a {type(value).__name__}, which this PyTorch cannot read in place ({error}): {REMEDY}"
        ) from error


def _numpy(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.cpu().numpy()
    return array


def _symmetric(products: Tensor) -> Matrix:
    return _numpy(0.5 * (products + products.T))


@contextmanager
def ieee_float32(device: torch.device) -> Iterator[None]:
    """Run the body with matrix products of float32 in float32: no TF32, no bfloat16, no autocast."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        for settings in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
            if hasattr(settings, "fp32_precision"):
                stack.callback(setattr, settings, "fp32_precision", settings.fp32_precision)
                settings.fp32_precision = "ieee"
            elif hasattr(settings, "allow_tf32"):  # torch before 2.9
                stack.callback(setattr, settings, "allow_tf32", settings.allow_tf32)
                settings.allow_tf32 = False
        yield


def is_ieee(device: torch.device) -> bool:
    """Whether a product of float32 here has all bits of one whose factors and sums need 23 of them."""
    left = torch.zeros((1, 32, CHUNK), dtype=torch.float32, device=device)
    left[:, :, :2] = 1.0 + 2.0**-22
    products = torch.bmm(left, torch.ones_like(left).transpose(1, 2))
    return bool((products == 2.0 + 2.0**-21).all())


def chunked_products(points: Tensor, others: Tensor, chunk: int) -> Tensor:
    """`points` @ `others`.T, of (p, c) and (q, c): sums over `chunk` columns, and those summed in float64."""
    whole = points.shape[1] // chunk * chunk
    total = torch.zeros((len(points), len(others)), dtype=torch.float64, device=points.device)
    if whole:
        first = points[:, :whole].unflatten(1, (-1, chunk)).transpose(0, 1)
        second = others[:, :whole].unflatten(1, (-1, chunk)).permute(1, 2, 0)
        step = max(points.numel() // total.numel(), 1)
        for start in range(0, len(first), step):
            some = torch.bmm(first[start : start + step], second[start : start + step])
            total += some.sum(dim=0, dtype=torch.float64)
    if whole < points.shape[1]:
        total += (points[:, whole:] @ others[:, whole:].T).double()
    return total


def _approximate_gram(rows: TensorRows, centre: int) -> ApproximateGram:
    with ieee_float32(rows.device):
        if is_ieee(rows.device):
            total = torch.zeros((len(rows), len(rows)), dtype=torch.float64, device=rows.device)
            for tile in rows.tiles():
                points = tile - tile[centre]
                total += chunked_products(points, points, CHUNK)
            products = _symmetric(total)
            squares = np.diagonal(products)
            if squares[squares > 0.0].min(initial=np.inf) >= LEAST_NORM:
                return ApproximateGram(products, ROUNDING)
    return ApproximateGram(_gram(rows, centre), FLOAT64_ROUNDING)


def _centred(tile: Tensor, centre: int | None, origin: bool = False) -> Tensor:
    points = tile.double()
    if origin:
        points = torch.cat([points, torch.zeros_like(points[:1])])
    return points if centre is None else points - points[centre]


def _gram(rows: TensorRows, centre: int | None = None, origin: bool = False) -> Matrix:
    size = len(rows) + origin
    total = torch.zeros((size, size), dtype=torch.float64, device=rows.device)
    for tile in rows.tiles():
        points = _centred(tile, centre, origin)
        total += chunked_products(points, points, CHUNK_FLOAT64)
    return _symmetric(total)


def _rows(rows: TensorRows, centre: int, indices: NDArray[np.intp]) -> Matrix:
    chosen = torch.tensor(indices.tolist(), device=rows.device)
    products = torch.zeros((len(indices), len(rows)), dtype=torch.float64, device=rows.device)
    squares = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for tile in rows.tiles():
        points = _centred(tile, centre)
        products += chunked_products(points[chosen], points, CHUNK_FLOAT64)
        squares += points.square().sum(dim=1)
    return _numpy(squares[chosen][:, None] + squares - 2.0 * products)


def _pairs(rows: TensorRows, pairs: NDArray[np.intp]) -> NDArray[np.float64]:
    """Point n is the zero vector; no more pairs than rows at once."""
    total = torch.zeros(len(pairs), dtype=torch.float64, device=rows.device)
    several = torch.tensor(pairs.tolist(), device=rows.device)
    for tile in rows.tiles():
        points = _centred(tile, None, origin=bool((pairs == len(rows)).any()))
        for some, out in zip(several.split(len(rows)), total.split(len(rows)), strict=True):
            out += (points[some[:, 0]] - points[some[:, 1]]).square_().sum(dim=1)
    return _numpy(total)


def _unequal(rows: TensorRows, pairs: NDArray[np.intp]) -> NDArray[np.float64]:
    differ = torch.zeros(len(pairs), dtype=torch.bool, device=rows.device)
    first, second = (torch.tensor(part.tolist(), device=rows.device) for part in pairs.T)
    for tile in rows.tiles():
        differ |= (tile[first] != tile[second]).any(dim=1)
    return _numpy(differ.double())


def _squares(rows: TensorRows) -> NDArray[np.float64]:
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for columns in rows.columns():
        total += torch.linalg.vector_norm(rows.raw_tile(columns), dim=1, dtype=torch.float64).square()
    return _numpy(total)


def _squares_from(rows: TensorRows, pivot: int) -> NDArray[np.float64]:
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for tile in rows.tiles():
        total += _centred(tile, pivot).square_().sum(dim=1)
    return _numpy(total)


def _combine(
    rows: TensorRows, rule: Rule, selection: Selection, num_byzantine: int, mixture: Mixture | None = None
) -> Tensor:
    if isinstance(rule, RowRule):
        return _weighted_sum(rows, selection)
    if not isinstance(rule, CoordinatewiseRule):
        raise UsageError(f"{rule.name} is not computed on tensors: {REMEDY}")
    window = rule.window(len(selection.rows), num_byzantine)
    mixing = None if mixture is None else _mixing(mixture.only(selection.rows), len(rows), rows.device)
    entering = selection.rows if mixing is None else None

    def values() -> Iterator[tuple[slice, Tensor]]:
        for columns in rows.columns():
            tile = rows.raw_tile(columns, entering)
            if mixing is not None:
                tile = (mixing[0] @ tile.double()).mul_(mixing[1]).to(torch.float32)
            yield columns, window_mean(tile, window)

    return rows.result(values())


def _mixing(mixture: Mixture, num_rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Coefficients (m, n) of the mixed rows, and what the sums are multiplied by, (m, 1); float64."""
    if isinstance(mixture, Means):
        coefficients, shares = mixture.entering(num_rows), mixture.shares
    else:
        coefficients, shares = mixture.coefficients, np.ones(len(mixture))
    return torch.from_numpy(coefficients).to(device), torch.from_numpy(shares[:, None]).to(device)


def _weighted_sum(rows: TensorRows, selection: Selection) -> Tensor:
    indices, weights = selection.rows, selection.weights
    if len(indices) == 1 and weights is None:
        return rows.result((columns, rows.tile(columns, indices)[0]) for columns in rows.columns())
    shares = None if weights is None else torch.from_numpy(weights).to(rows.device)

    def values() -> Iterator[tuple[slice, Tensor]]:
        for columns in rows.columns():
            tile = rows.raw_tile(columns, indices)
            if shares is None:
                yield columns, tile.sum(dim=0, dtype=torch.float64) / len(indices)
            else:
                yield columns, shares @ tile.double()

    return rows.result(values())


def _report(
    rows: TensorRows,
    rule: Rule,
    selection: Selection,
    num_byzantine: int,
    mixture: Mixture | None,
    differences: bool,
) -> BlockReport:
    """Squares are float64's; the coordinates looked at are those of `outliers.report_block`."""
    vector = _combine(rows, rule, selection, num_byzantine, mixture)
    squares = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    square = torch.zeros((), dtype=torch.float64, device=rows.device)
    for columns in rows.columns():
        points, part = rows.tile(columns).double(), vector[columns].double()
        own = part.square().sum()
        square += own
        squares += points.sub_(part).square_().sum(dim=1) if differences else own - 2.0 * (points @ part)
    outside, looked = None, 0
    if isinstance(rule, CoordinatewiseRule) and mixture is None:
        window = rule.window(len(selection.rows), num_byzantine)
        counts = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        for block in column_blocks(rows.num_columns):
            columns = slice(block.start, min(block.start + LOOK_COLUMNS, block.stop))
            least, largest = window_ends(rows.raw_tile(columns, selection.rows), window)
            tile = rows.raw_tile(columns)
            counts += ((tile < least) | (tile > largest)).sum(dim=1)
            looked += columns.stop - columns.start
        outside = counts.cpu().numpy()
    return BlockReport(vector, float(square), _numpy(squares), outside, looked)


TWINS: dict[Callable[..., Any], Callable[..., Any]] = {
    approximate_gram_block: _approximate_gram,
    gram_block: _gram,
    rows_block: _rows,
    pair_block: _pairs,
    equal_block: _unequal,
    squares_block: _squares,
    squares_from_block: _squares_from,
    combine_block: _combine,
    report_block: _report,
}
"""NumPy's kernel of one block to the one of all columns here."""
