"""How kernels are compiled and kept; skipped without Numba (the extra ``fast``)."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scarcity_ray.robust.arrays.mixed_rows import MixedRows, mixture_of
from scarcity_ray.robust.measures import order_statistics
from scarcity_ray.robust.native import loader
from scarcity_ray.robust.native.loader import key_of
from scarcity_ray.robust.rules import mean

numba = pytest.importorskip("numba", reason="the extra fast is not installed")

from scarcity_ray.robust.native import columns, products, sums, vectors  # noqa: E402

AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx,+avx2,+bmi,+bmi2,+cmov,+f16c,+fma,+lzcnt,+movbe,+popcnt,+sse4.2",
}


def test_the_code_allows_no_inexact_arithmetic():
    compiled = [
        function
        for module in (columns, products, sums, vectors)
        for function in vars(module).values()
        if hasattr(function, "targetoptions")
    ]
    assert len(compiled) > 20
    assert not any(function.targetoptions["fastmath"] for function in compiled)
    assert "flags=" not in Path(vectors.__file__).read_text()


def test_what_is_kept_is_keyed_by_the_processor_the_versions_and_the_kernels_sources(monkeypatch, tmp_path):
    keys = {key_of(("x86_64", "haswell", "+avx2")), key_of(("x86_64", "haswell", "+avx2,+fma"))}
    monkeypatch.setattr(loader, "version", lambda name: "0.99")
    keys.add(key_of(("x86_64", "haswell", "+avx2")))
    (tmp_path / "columns.py").write_text("TILE = 64")
    monkeypatch.setattr(loader, "SOURCES", [tmp_path / "columns.py"])
    keys.add(key_of(("x86_64", "haswell", "+avx2")))
    assert len(keys) == 4


def test_a_small_block_loads_no_kernel(monkeypatch):
    monkeypatch.setattr(loader, "FEWEST_ENTRIES", 65_536)
    asked = []
    monkeypatch.setattr(mean, "sum_kernel", lambda: asked.append(1))
    for n, d in ((10, 6_553), (10, 6_554)):
        mean.weighted_sum(np.ones((n, d), np.float32), None)
    assert len(asked) == 1


def test_asking_whether_a_block_is_worth_a_kernel_forms_no_mixed_rows(monkeypatch):
    assert order_statistics.order_statistics_kernel() is not None
    mixed = MixedRows(np.ones((40, 100), np.float32), mixture_of(np.eye(40)))
    monkeypatch.setattr(MixedRows, "__getitem__", lambda *args: pytest.fail("a row was formed"))
    order_statistics.window_mean(mixed, order_statistics.Window(3, 20))


def test_a_folder_that_others_can_write_to_is_not_used(monkeypatch, tmp_path, caplog):
    """What somebody else put there is pickle: it must not be read."""
    (tmp_path / "scarcity_ray").mkdir(mode=0o777)
    os.chmod(tmp_path / "scarcity_ray", 0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert order_statistics.order_statistics_kernel.__wrapped__() is None
    assert "columns are sorted by NumPy" in caplog.text
    assert "writable by other users" in caplog.text


def test_numba_told_not_to_compile_leaves_the_work_to_numpy(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert mean.sum_kernel.__wrapped__() is None


def test_what_cannot_be_compiled_or_read_leaves_the_work_to_numpy(monkeypatch, caplog):
    def fail(function, signature):
        raise EOFError("half a file")

    monkeypatch.setattr(type(sums.mean), "compile", fail)
    assert mean.sum_kernel.__wrapped__() is None
    assert "half a file" in caplog.text


def test_kernels_kept_where_somebody_else_says_are_not_used(monkeypatch, caplog):
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "InTreeCacheLocator")
    assert mean.sum_kernel.__wrapped__() is None
    assert "Numba keeps kernels in" in caplog.text


SAMPLE = """
import hashlib, numpy as np
from scarcity_ray.robust import aggregate
from scarcity_ray.robust.measures.order_statistics import order_statistics_kernel
from scarcity_ray.robust.native.gram_kernel import gram_kernel
from scarcity_ray.robust.rules.mean import sum_kernel
kernels = order_statistics_kernel(), gram_kernel(), sum_kernel()
rows = np.random.default_rng(0).standard_normal((40, 9000)).astype(np.float32)
digest = hashlib.sha256()
for method in ("median", "meamed", "bulyan", "multi_krum"):
    digest.update(aggregate(rows, method=method, num_byzantine=6).vector.tobytes())
digest.update(aggregate(rows, method="trimmed_mean", num_byzantine=6, pre=("nnm",)).vector.tobytes())
"""


@pytest.mark.slow
def test_vectors_of_either_width_give_the_same_bytes():
    """As a processor with AVX2 would; in a process of its own, as the width is fixed when Numba is loaded."""
    ours: dict[str, object] = {}
    exec(SAMPLE, ours)
    script = SAMPLE + "from scarcity_ray.robust.native.vectors import LANES\n"
    script += "print(LANES, None in kernels, digest.hexdigest())"
    environment = os.environ | AVX2 | {"OPENBLAS_CORETYPE": "Haswell"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8", "False", ours["digest"].hexdigest()]
