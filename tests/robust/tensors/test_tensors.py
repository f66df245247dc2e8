"""Rules on tensors against NumPy's path and the float64 definitions, on the CPU; no test here needs a GPU."""

from __future__ import annotations

import sys
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import TooFewUpdates, UsageError
from scarcity_ray.robust import AggregationRule, Bucketing, StaticClipping, aggregate
from scarcity_ray.robust.measures.approximate_distances import measure_approximately
from scarcity_ray.robust.outliers import combine_and_report
from scarcity_ray.robust.rules import RULES
from scarcity_ray.robust.rules.base import Selection
from scarcity_ray.robust.tensors.detection import tensor_rows

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed: pip install 'scarcity-ray[test-torch]'"
)
from scarcity_ray.robust.tensors import kernels  # noqa: E402

torch.set_num_threads(1)
NUMPYS = {torch.float32: np.float32, torch.float16: np.float16}
SELECTING = ("krum", "multi_krum", "bulyan")


@pytest.fixture(autouse=True, scope="module")
def small_tiles():
    """Several tiles of 1024 columns, with a last one that is not whole; none is left to NumPy."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(kernels, "NUMPYS_DEVICES", ())
        monkeypatch.setitem(kernels.TILE_ENTRIES, "cpu", 2**14)
        yield


def hostile_rows(rng, n=17, d=2300):
    """Rows around a mean or none, some of them huge, equal, nearly equal, cancelling, tiny or one-signed."""
    rows = rng.standard_normal((n, d)) + rng.choice([0.0, 30.0]) * rng.standard_normal(d)
    for _ in range(int(rng.integers(0, 5))):
        index, other = rng.integers(0, n, 2)
        rows[index] = [
            rows[other],
            rows[other] * (1 + 1e-6),
            -rows[other],
            1e12 * rows[index],
            1e-25 * rows[index],
            np.full(d, rng.choice([1.0, 1e-3, 3e7])),
        ][int(rng.integers(6))]
    return (rows * rng.choice([1.0, 1.0, 1e-6])).astype(np.float32)


def near(ours, numpys, rows):
    """To one unit of float32's last place, and what float64 sums of the rows lose."""
    allowed = np.spacing(np.abs(numpys)) + len(rows) * 2.0**-50 * np.abs(rows).max(axis=0)
    return (np.abs(ours.astype(np.float64) - numpys) <= allowed).all()


@pytest.mark.parametrize("pre", [(), ("nnm",), ("arc",), (Bucketing(2, 0),), (StaticClipping(40.0),)])
@pytest.mark.parametrize("method", sorted(RULES))
def test_every_rule_gives_what_it_gives_for_numpys_rows(method, pre):
    rows = np.random.default_rng(1).standard_normal((26, 2300)).astype(np.float32)
    rows[3] *= 1e9
    rows[5] = rows[6]
    f = 2 if pre != (Bucketing(2, 0),) else 1
    numpys = aggregate(rows, method=method, num_byzantine=f, pre=pre)
    result = aggregate(torch.from_numpy(rows), method=method, num_byzantine=f, pre=pre)
    assert result.selected == numpys.selected
    assert result.vector.dtype == torch.float32
    scale = np.abs(numpys.vector).max()
    np.testing.assert_allclose(result.vector.numpy(), numpys.vector, rtol=1e-6, atol=1e-6 * scale)
    if numpys.weights is not None:
        np.testing.assert_allclose(result.weights, numpys.weights, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@given(seed=st.integers(0, 2**32 - 1), method=st.sampled_from(SELECTING), nnm=st.booleans())
def test_a_selection_is_that_of_the_float64_definition(dtype, seed, method, nnm):
    given_rows = torch.from_numpy(hostile_rows(np.random.default_rng(seed))).to(dtype)
    rows = given_rows.float().numpy()
    finite = np.isfinite(rows).all(axis=1)
    if (~finite).sum() > 3:
        return
    pre = ("nnm",) if nnm else ()
    numpys = aggregate(rows, method=method, num_byzantine=3, pre=pre)
    result = aggregate(given_rows, method=method, num_byzantine=3, pre=pre)
    assert result.selected == numpys.selected
    assert result.rejected == numpys.rejected
    assert result.vector.dtype == (dtype if dtype in kernels.KEPT else torch.float32)
    if method == "bulyan" or nnm or not finite.all():
        return
    exact = np.array(
        [np.square(rows.astype(np.float64) - row).sum(axis=1) for row in rows.astype(np.float64)]
    )
    np.fill_diagonal(exact, np.inf)
    scores = np.sort(exact, axis=1)[:, : 17 - 3 - 2].sum(axis=1)
    left_out = np.delete(scores, result.selected)
    assert scores[list(result.selected)].max() <= left_out.min() * (1 + 1e-9)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["mean", "median", "trimmed_mean", "meamed", "multi_krum"]))
def test_values_are_numpys_to_the_last_place(seed, method):
    rows = hostile_rows(np.random.default_rng(seed))
    numpys = aggregate(rows, method=method, num_byzantine=3).vector
    assert near(
        aggregate(torch.from_numpy(rows), method=method, num_byzantine=3).vector.numpy(), numpys, rows
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["median", "krum"])
def test_the_result_lies_on_the_rows_device_and_is_of_their_type(method, dtype):
    rows = torch.from_numpy(hostile_rows(np.random.default_rng(5))).clamp(-1e4, 1e4).to(dtype)
    numpys = aggregate(rows.float().numpy(), method=method, num_byzantine=3)
    for given_rows in (rows, list(rows), rows.t().contiguous().t()):
        result = aggregate(given_rows, method=method, num_byzantine=3)
        assert result.vector.dtype == dtype
        assert result.vector.device == rows.device
        assert torch.equal(result.vector, torch.from_numpy(numpys.vector).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_tensor_on_the_cpu_gives_numpys_bytes_and_a_tensor(monkeypatch, dtype):
    monkeypatch.setattr(kernels, "NUMPYS_DEVICES", ("cpu",))
    rows = torch.from_numpy(hostile_rows(np.random.default_rng(5))).clamp(-1e4, 1e4).to(dtype)
    numpys = aggregate(rows.float().numpy(), method="trimmed_mean", num_byzantine=3, report=True)
    for given_rows in (rows, list(rows)):
        result = aggregate(given_rows, method="trimmed_mean", num_byzantine=3, report=True)
        kept = torch.float32 if dtype == torch.float64 else dtype
        assert result.vector.dtype == kept
        assert torch.equal(result.vector, torch.from_numpy(numpys.vector).to(kept))
        assert result.report is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_any_entry_that_is_not_finite_is_found_wherever_it_is(dtype):
    for value in (np.nan, np.inf, -np.inf):
        for place in (0, 1023, 1024, 1999, 2048):
            rows = torch.randn((4, 2049), generator=torch.Generator().manual_seed(place)).to(dtype)
            rows[0] = torch.finfo(dtype).max if dtype != torch.float64 else 3e38
            rows[1, place] = value
            tensors = kernels.TensorRows(rows)
            assert tensors.finite()[1] == [0, 2, 3]
            assert np.isfinite(tensors.norms()).tolist() == [True, False, True, True]


def test_rows_that_are_not_finite_are_masked_and_counted():
    rows = torch.from_numpy(hostile_rows(np.random.default_rng(7)))
    rows[2, 2299], rows[9, 3] = float("nan"), float("-inf")
    for method in ("median", "krum", "mean", "bulyan"):
        f = 3 if method == "bulyan" else 4
        result = aggregate(rows, method=method, num_byzantine=f)
        numpys = aggregate(rows.numpy(), method=method, num_byzantine=f)
        assert result.rejected == numpys.rejected == (2, 9)
        assert result.selected == numpys.selected
        assert torch.isfinite(result.vector).all()
    with pytest.raises((TooFewUpdates, UsageError)):
        aggregate(torch.full((2, 3), float("nan")), method="median", num_byzantine=2)
    rows[:6, 0] = float("nan")
    with pytest.raises(UsageError, match="7 of 17 rows are not finite"):
        aggregate(rows, method="median", num_byzantine=4)
    doubled = torch.ones((5, 3), dtype=torch.float64)
    doubled[1] = 1e300
    assert aggregate(doubled, method="median", num_byzantine=1).rejected == (1,)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_whatever_precision_torch_is_set_to_the_selection_is_the_same_and_the_setting_stays(precision):
    rows = torch.from_numpy(hostile_rows(np.random.default_rng(3)))
    expected = aggregate(rows.numpy(), method="multi_krum", num_byzantine=3)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        settings = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
        held = [part.fp32_precision for part in settings]
        with kernels.ieee_float32(rows.device):
            assert [part.fp32_precision for part in settings] == ["ieee", "ieee"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for method in ("multi_krum", "median", "mean"):
                result = aggregate(rows, method=method, num_byzantine=3)
                if method == "multi_krum":
                    assert result.selected == expected.selected
                    assert near(result.vector.numpy(), expected.vector, rows.numpy())
            assert torch.is_autocast_enabled("cpu")
        assert [part.fp32_precision for part in settings] == held
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_products_that_are_not_float32_are_found_and_formed_in_float64(monkeypatch):
    rows = torch.from_numpy(np.random.default_rng(3).standard_normal((17, 2300)).astype(np.float32))
    assert kernels.is_ieee(rows.device)
    right, bmm = aggregate(rows, method="multi_krum", num_byzantine=3), torch.bmm

    def tf32(left, other):
        if left.dtype == torch.float64:
            return bmm(left, other)
        return bmm(left.bfloat16().float(), other.bfloat16().float())

    monkeypatch.setattr(torch, "bmm", tf32)
    assert not kernels.is_ieee(rows.device)
    gram = kernels._approximate_gram(kernels.TensorRows(rows), 0)
    assert gram.rounding < 2.0**-30
    assert aggregate(rows, method="multi_krum", num_byzantine=3).selected == right.selected


@pytest.mark.parametrize("pre", [(), ("nnm",), (StaticClipping(40.0),)])
@pytest.mark.parametrize("method", sorted(RULES))
def test_a_report_is_numpys_and_changes_no_bit_of_the_result(method, pre):
    rows = hostile_rows(np.random.default_rng(11), n=26, d=17_500)  # three blocks, the last of them short
    numpys = aggregate(rows, method=method, num_byzantine=2, pre=pre, report=True)
    result = aggregate(torch.from_numpy(rows), method=method, num_byzantine=2, pre=pre, report=True)
    plain = aggregate(torch.from_numpy(rows), method=method, num_byzantine=2, pre=pre)
    assert torch.equal(result.vector, plain.vector)
    np.testing.assert_allclose(result.report.distances, numpys.report.distances, rtol=2e-3, atol=1e-30)
    assert (result.report.outside is None) == (numpys.report.outside is None)
    if numpys.report.outside is not None:
        np.testing.assert_array_equal(result.report.outside, numpys.report.outside)
    masked = torch.from_numpy(rows)
    masked[4, 9] = float("nan")
    told = aggregate(masked, method=method, num_byzantine=2, pre=pre, report=True).report
    assert told.distances[4] == told.z[4] == np.inf


@given(st.integers(0, 2**32 - 1))
def test_distances_in_a_report_are_those_to_the_result_in_float64(seed):
    rng = np.random.default_rng(seed)
    rows = hostile_rows(rng)
    tensors = kernels.TensorRows(torch.from_numpy(rows))
    norms = tensors.norms()
    np.testing.assert_allclose(norms, np.linalg.norm(rows.astype(np.float64), axis=1), rtol=1e-12)
    rule, everybody = RULES["trimmed_mean"], Selection(tuple(range(len(rows))))
    for known in (norms, None):
        vector, report = combine_and_report(tensors.map_blocks, known, rule, everybody, 3, None)
        exact = np.linalg.norm(rows.astype(np.float64) - vector.numpy().astype(np.float64), axis=1)
        np.testing.assert_allclose(report.distances, exact, rtol=1e-6 if known is None else 2**-6)


@given(st.integers(0, 2**32 - 1))
def test_approximate_distances_are_within_the_bound_that_comes_with_them(seed):
    rng = np.random.default_rng(seed)
    rows = hostile_rows(rng)
    if rng.random() < 0.5:
        rows[1::2] = rng.standard_normal((8, 1)) * np.ones(rows.shape[1])  # rounding errors all of one sign
    tensors = kernels.TensorRows(torch.from_numpy(rows))
    with np.errstate(over="ignore", invalid="ignore"):
        found = measure_approximately(tensors.map_blocks, tensors.head_norms())
    if found is None:
        return
    exact = np.array(
        [np.square(rows.astype(np.float64) - row).sum(axis=1) for row in rows.astype(np.float64)]
    )
    assert (np.abs(found.squared - exact) <= found.error * exact).all()


def test_no_tensor_that_is_made_has_more_entries_than_a_tile_but_for_the_result():
    from torch.utils._python_dispatch import TorchDispatchMode

    made: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            known = {part.untyped_storage().data_ptr() for part in args if isinstance(part, torch.Tensor)}
            for part in out if isinstance(out, tuple | list) else (out,):
                if isinstance(part, torch.Tensor) and part.untyped_storage().data_ptr() not in known:
                    made.append(part.untyped_storage().nbytes() // part.element_size())
            return out

    n, d, tile = 12, 20_000, kernels.TILE_ENTRIES["cpu"]
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((n, d)).astype(np.float32))
    for dtype in (torch.float32, torch.bfloat16):
        told = dtype == torch.float32
        for method, pre in (
            ("mean", ("nnm",)),
            ("meamed", ("arc",)),
            ("multi_krum", ()),
            ("bulyan", ()),
            ("median", ()),
        ):
            given_rows = rows.to(dtype)
            with Sizes():
                aggregate(given_rows, method=method, num_byzantine=2, pre=pre, report=told)
    assert max(size for size in made if size != d) <= tile < n * d // 10


@pytest.mark.parametrize("numpys", [("cpu",), ()], ids=["by NumPy", "by torch"])
def test_views_negatives_and_small_floats_are_read_as_what_they_hold(monkeypatch, numpys):
    monkeypatch.setattr(kernels, "NUMPYS_DEVICES", numpys)
    rows = torch.from_numpy(hostile_rows(np.random.default_rng(8), n=9, d=40)).clamp(-100, 100)
    strided = torch.stack([rows, rows + 1], dim=2)[:, ::2, 0].flip(0)
    negative = torch.complex(rows, rows).conj().imag
    assert negative.is_neg()
    small = rows.to(torch.float8_e4m3fn)
    whole = (100 * rows.clamp(-1, 1)).to(torch.int32)
    for given_rows in (strided, negative, small, whole, [*small], rows[:, 3::7], rows[:1].expand(9, 40)):
        plain = np.array([np.array(row.float().tolist(), np.float32) for row in given_rows])
        expected = aggregate(plain, method="trimmed_mean", num_byzantine=2).vector
        result = aggregate(given_rows, method="trimmed_mean", num_byzantine=2).vector
        assert result.dtype == torch.float32
        assert near(result.numpy(), expected, plain)


def test_ties_and_rows_that_no_float32_tells_apart_go_to_the_same_row_as_numpys():
    base = np.random.default_rng(4).standard_normal(1500)
    for rows in (
        np.tile(base, (9, 1)),
        np.stack([base * (1 + 1e-12 * i) for i in range(9)]),
        np.sign(np.random.default_rng(5).standard_normal((9, 1500))),
        np.vstack([np.zeros((5, 1500)), np.eye(4, 1500)]),
        np.full((9, 1500), 1e-42),
    ):
        for method in SELECTING:
            f = 1 if method == "bulyan" else 3
            given_rows = torch.from_numpy(rows)
            assert given_rows.dtype == torch.float64
            result = aggregate(given_rows, method=method, num_byzantine=f)
            assert result.selected == aggregate(rows, method=method, num_byzantine=f).selected


def test_inputs_are_never_written_to_and_gradients_are_not_asked_for():
    rows = torch.from_numpy(hostile_rows(np.random.default_rng(9))).requires_grad_()
    before = rows.detach().clone()
    for method in sorted(set(RULES) - {"centered_clipping"}):
        assert not aggregate(rows, method=method, num_byzantine=3).vector.requires_grad
    assert torch.equal(rows.detach(), before)


class OnADevice:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **arguments):
        return self.tensor.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def test_what_numpy_reads_is_left_to_numpy_and_a_tensor_of_torch_never_is(monkeypatch):
    rows = hostile_rows(np.random.default_rng(2))
    assert tensor_rows(rows) is tensor_rows(list(rows)) is tensor_rows(rows.tolist()) is None
    for given_rows in (OnADevice(torch.from_numpy(rows)), [OnADevice(torch.from_numpy(row)) for row in rows]):
        result = aggregate(given_rows, method="median", num_byzantine=3)
        assert torch.equal(
            result.vector, aggregate(torch.from_numpy(rows), method="median", num_byzantine=3).vector
        )
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "scarcity_ray.robust.tensors.kernels")
    with pytest.raises(UsageError, match=r"need torch; install it with: pip install 'scarcity-ray\[torch\]'"):
        tensor_rows(OnADevice(torch.from_numpy(rows)))


ROWS = torch.ones((9, 4))


class Unreadable:
    """An array on a device that torch, as it is built, cannot read."""

    __cuda_array_interface__: ClassVar[dict[str, object]] = {}


class Elsewhere(Unreadable):
    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **arguments):
        raise BufferError("it lies on a device of another")


REFUSED = [
    (ROWS[0], "2-D tensor, got shape"),
    (Unreadable(), "a Unreadable, which this PyTorch cannot read in place"),
    ([*ROWS[:8], Elsewhere()], "row 8 is a Elsewhere, which this PyTorch cannot read .*: give NumPy arrays"),
    ([[1.0] * 4, *ROWS[:8]], "row 0 is no tensor, but list"),
    ([np.ones(4), *ROWS[:8].requires_grad_()], "row 0 is a NumPy array among tensors"),
    (torch.ones((9, 0)), "at least one entry"),
    (ROWS > 0, "real numbers, got torch.bool"),
    (ROWS.to(torch.complex64), "real numbers"),
    (ROWS.to_sparse(), "dense tensor"),
    (ROWS.to("meta"), "dense tensor with values"),
    ([*ROWS[:8], ROWS[0, :3]], "row 8 must be 1-D and as long as row 0"),
    ([*ROWS[:8], ROWS[0].half()], "one type on one device"),
    ([*ROWS[:8], np.ones(4)], "row 8 is a NumPy array among tensors"),
    ([*ROWS[:8], [1.0] * 4], "row 8 is no tensor, but list"),
]


@pytest.mark.parametrize(("rows", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_are_no_rows_is_refused_with_what_they_are(rows, words):
    with pytest.raises(UsageError, match=words):
        aggregate(rows, method="median", num_byzantine=1)


def test_what_is_not_computed_on_tensors_says_so_and_the_remedy():
    class Mine(AggregationRule):
        def least_rows(self, num_byzantine):
            return 1

        def aggregate(self, rows, num_byzantine, rng):
            return rows.mean(axis=0)

    with pytest.raises(UsageError, match=r"Mine is not computed on tensors: give NumPy arrays.*cpu\(\)"):
        aggregate(ROWS, num_byzantine=1, method=Mine())
    with pytest.raises(TooFewUpdates):
        aggregate(torch.ones((0, 4)), method="median", num_byzantine=1)
    with pytest.raises(TooFewUpdates):
        aggregate(ROWS[:3], method="krum", num_byzantine=1)
