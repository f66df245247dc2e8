"""Layer 1 on tensors and on a device, against NumPy's path and brute force; no test here needs a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.config import AggregationMethod, Layer1Config
from scarcity_ray.errors import RuleFailed, TooFewUpdates, UsageError
from scarcity_ray.layers import Layer1Aggregator, Layer1Input
from scarcity_ray.robust import clip_rows, row_norms
from tests.layers.test_layer1 import BRUTE, clip

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed: pip install 'scarcity-ray[test-torch]'"
)
from scarcity_ray.robust.tensors import kernels  # noqa: E402

torch.set_num_threads(1)
METHODS = [m.value for m in AggregationMethod]
CLIP = 1.5


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles of 1024 columns, with a last one that is not whole; none is left to NumPy."""
    monkeypatch.setattr(kernels, "NUMPYS_DEVICES", ())
    monkeypatch.setitem(kernels.TILE_ENTRIES, "cpu", 2**14)


def rows_of(seed, n=13, d=2300):
    """Rows around 0, of norms about `CLIP`, one huge, one the opposite of another, two equal."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)) * rng.uniform(0.6, 1.6, (n, 1)) * CLIP / np.sqrt(d)
    rows[2] *= 1e20
    rows[5] = rows[6]
    rows[8] = -rows[9]
    return rows.astype(np.float32)


def config_of(method, **settings):
    f = int(method != "centered_clipping")
    return Layer1Config(aggregation_method=method, **{"num_byzantine": f, "clip_norm": CLIP, **settings})


def aggregated(config, rows, device=None, **more):
    given_rows = Layer1Input(rows, num_members=len(rows) + 1, **more)
    return Layer1Aggregator(config, device=device).aggregate_basket(given_rows, seed=3, report=True)


@pytest.mark.parametrize("pre", [(), ("nnm",), ("arc",), ("bucketing",)])
@pytest.mark.parametrize("method", METHODS)
def test_on_a_device_rows_are_clipped_as_here_and_the_same_are_selected(method, pre):
    if pre and method == "weighted":
        return
    config, rows = config_of(method, pre=pre), rows_of(1)
    weights = np.arange(1.0, 14.0) if method == "weighted" else None
    numpys = aggregated(config, rows, weights=weights)
    of_tensors = aggregated(config, torch.from_numpy(rows), weights=weights)
    there = aggregated(config, rows, device="cpu", weights=weights)
    assert isinstance(there.aggregate, np.ndarray)
    assert there.aggregate.tobytes() == of_tensors.aggregate.numpy().tobytes()
    np.testing.assert_allclose(there.aggregate, numpys.aggregate, rtol=1e-6, atol=1e-9)
    assert there.selected == numpys.selected
    assert (there.num_byzantine, there.confidence, there.max_row_share) == (
        numpys.num_byzantine,
        numpys.confidence,
        numpys.max_row_share,
    )
    for client, place in numpys.placings.items():
        ours = there.placings[client]
        assert (ours.selected, ours.trimmed) == (place.selected, place.trimmed)
        assert ours.distance == pytest.approx(place.distance, rel=2e-3, abs=1e-6)
        assert ours.agreement == pytest.approx(place.agreement, abs=0.02)
    if method == "krum" and not pre:
        kept = clip_rows(rows, row_norms(rows), CLIP)[int(there.selected[0])]
        assert there.aggregate.tobytes() == clip_rows(kept[None], row_norms(kept[None]), CLIP)[0].tobytes()


@pytest.mark.parametrize("method", sorted(BRUTE))
@given(seed=st.integers(0, 2**32 - 1))
def test_the_aggregate_is_the_rules_on_clipped_rows_by_brute_force_in_float64(method, seed):
    rng = np.random.default_rng(seed)
    rows = (rng.choice([0.3, 5.0]) * rng.standard_normal((9, 11))).astype(np.float32)
    weights = rng.uniform(0.1, 2, 9) if method == "weighted" else None
    model = Layer1Aggregator(config_of(method)).aggregate(torch.from_numpy(rows), weights)
    clipped = clip(rows.astype(np.float64)).astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(model.aggregate, clip(BRUTE[method](clipped, 1, weights, None)), 3e-5, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["median", "krum", "mean"])
def test_an_aggregate_of_tensors_lies_on_their_device_and_is_float32(monkeypatch, method, dtype):
    layer = Layer1Aggregator(config_of(method, clip_norm=0.07))
    rows = torch.from_numpy(rows_of(2)).clamp(-6e4, 6e4).to(dtype).requires_grad_()
    expected = layer.aggregate(rows.detach().float().numpy()).aggregate
    for numpys in ((), ("cpu",)):
        monkeypatch.setattr(kernels, "NUMPYS_DEVICES", numpys)
        for given_rows in (rows, list(rows), rows.t().contiguous().t()):
            aggregate = layer.aggregate(given_rows).aggregate
            assert (aggregate.dtype, aggregate.device) == (torch.float32, rows.device)
            assert not aggregate.requires_grad
            np.testing.assert_allclose(aggregate.numpy(), expected, rtol=1e-6, atol=1e-9)
            assert float(aggregate.double().norm()) <= 0.07 * (1 + 2**-23)


def test_rows_that_are_not_finite_or_too_few_are_refused_on_a_device_too():
    rows = rows_of(3)
    rows[4, 2299], rows[7, 0] = np.nan, -np.inf
    for given_rows, device in ((rows, "cpu"), (torch.from_numpy(rows), None), (list(rows), "cpu")):
        with pytest.raises(UsageError, match=r"rows \[4, 7\] are not finite"):
            aggregated(config_of("krum"), given_rows, device)
        with pytest.raises(TooFewUpdates):
            aggregated(config_of("krum", num_byzantine=6), given_rows, device)
    for empty in (np.zeros((0, 5), np.float32), []):
        with pytest.raises(TooFewUpdates):
            aggregated(config_of("krum"), empty, "cpu")
    doubled = torch.ones((9, 3), dtype=torch.float64)
    doubled[1] = 1e300
    with pytest.raises(UsageError, match=r"rows \[1\] are not finite"):
        aggregated(config_of("krum"), doubled)


def test_a_rule_from_outside_gets_numpys_rows_on_a_device_and_refuses_tensors():
    path = "tests.robust.rules.test_plugin:Acts"
    config = Layer1Config(aggregation_method=path, rule_args={"act": "mean"}, num_byzantine=1)
    rows = rows_of(4)
    here, there = (aggregated(config, rows, device) for device in (None, "cpu"))
    assert here.aggregate.tobytes() == there.aggregate.tobytes()
    with pytest.raises(UsageError, match=r"Acts is not computed on tensors: give NumPy arrays"):
        aggregated(config, torch.from_numpy(rows))


def test_a_device_that_fails_keeps_the_updates_waiting_and_says_the_remedy(monkeypatch):
    def full(self, factors, seconds):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\n more of it")

    monkeypatch.setattr(kernels.TensorRows, "scaled_blocks", full)
    with pytest.raises(RuleFailed) as failed:
        aggregated(config_of("krum"), rows_of(6), "cpu")
    assert str(failed.value) == (
        "rule krum: cpu failed on 13 rows of 2300 numbers (OutOfMemoryError); give each actor more of a GPU "
        "(runtime.gpus_per_actor), or set that to 0: CUDA out of memory. Tried to allocate 2 GiB"
    )


def test_a_device_that_is_not_there_is_told():
    if not torch.cuda.is_available():
        with pytest.raises(RuleFailed, match=r"cuda failed on 13 rows .*set that to 0: .*CUDA"):
            aggregated(config_of("krum"), rows_of(6), "cuda")


def test_whatever_torchs_default_device_type_and_mode_are_the_result_is_the_same():
    rows, config = rows_of(7), config_of("multi_krum", pre=("nnm",))
    expected = aggregated(config, rows)
    with torch.device("meta"), torch.inference_mode():
        torch.set_default_dtype(torch.float64)
        try:
            results = [aggregated(config, torch.from_numpy(rows)), aggregated(config, rows, "cpu")]
        finally:
            torch.set_default_dtype(torch.float32)
    for result in results:
        assert result.selected == expected.selected
        np.testing.assert_allclose(result.aggregate, expected.aggregate, rtol=1e-6, atol=1e-9)


def test_rows_are_copied_to_a_device_once_and_read_only_ones_without_a_warning():
    rows = rows_of(5)
    rows.flags.writeable = False
    before = rows.tobytes()
    for given_rows in (rows, list(rows), [*rows[:4].astype(np.float64), *rows[4:]]):
        copied = kernels.TensorRows.copied([np.asarray(row, np.float32) for row in given_rows], "cpu")
        assert copied.rows.numpy().tobytes() == before
        assert not np.shares_memory(copied.rows.numpy(), rows)
