from __future__ import annotations

import pytest

from scarcity_ray.robust.measures import approximate_distances, distances
from scarcity_ray.robust.native import loader
from scarcity_ray.robust.native.gram_kernel import gram_kernel


@pytest.fixture(autouse=True, scope="module")
def kernels_for_blocks_of_any_size():
    """Small blocks, of which tests are made, go the way of large ones; `test_loader.py` has the rule."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(loader, "FEWEST_ENTRIES", 0)
        yield


@pytest.fixture(scope="module", params=["compiled", "BLAS"])
def products_by(request):
    """Who forms inner products; skipped where the compiled kernel cannot be had."""
    if request.param == "compiled" and gram_kernel() is None:
        pytest.skip("the extra fast is not installed")
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.param == "BLAS":
            for module in (distances, approximate_distances):
                monkeypatch.setattr(module, "gram_kernel", lambda: None)
        yield request.param
