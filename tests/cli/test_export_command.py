"""``scarcity-ray export``: a saved model for a framework, or an error that names the file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from scarcity_ray.cli.main import main
from scarcity_ray_client import save_model

WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model("model.npz", {"weights": WEIGHTS, "bias": np.zeros(3, np.float16)})

    def run(*arguments):
        return CliRunner().invoke(main, ["export", *arguments])

    return run


def test_arrays_are_written_by_name(call):
    done = call("model.npz", "--to", "numpy")
    assert (done.exit_code, done.stdout) == (0, "Written to model.arrays.npz\n")
    with np.load("model.arrays.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["bias", "weights"]
        assert np.array_equal(arrays["weights"], WEIGHTS)
        assert arrays["bias"].dtype == np.float16


def test_a_state_dict_is_written_for_torch(call):
    torch = pytest.importorskip("torch")
    assert call("model.npz", "--to", "torch", "--out", "here.pt").exit_code == 0
    state = torch.load("here.pt", weights_only=True)
    assert np.array_equal(state["weights"].numpy(), WEIGHTS)
    assert state["bias"].dtype == torch.float16


@pytest.mark.parametrize(
    "fault", ["none", "foreign", "torn", "text", "folder", "taken", "no folder", "no framework"]
)
def test_what_cannot_be_exported_is_refused_by_name(call, fault):
    arguments, words = ["model.npz", "--to", "numpy"], "model.npz is no model that save_model wrote"
    if fault == "none":
        arguments[0], words = "other.npz", "cannot read other.npz: No such file"
    if fault == "foreign":
        np.savez("model.npz", weights=WEIGHTS)
    if fault == "torn":
        whole = Path("model.npz").read_bytes()
        Path("model.npz").write_bytes(whole[: len(whole) // 2])
    if fault == "text":
        Path("model.npz").write_text("name: job\n")
    if fault == "folder":
        Path("runs").mkdir()
        arguments[0], words = "runs", "File 'runs' is a directory"
    if fault == "taken":
        Path("model.arrays.npz").write_text("mine")
        words = "cannot make model.arrays.npz: File exists"
    if fault == "no folder":
        arguments += ["--out", "nowhere/out.npz"]
        words = "cannot make nowhere/out.npz: No such file"
    if fault == "no framework":
        arguments[2], words = "keras", "'keras' is not one of 'torch', 'numpy'"
    before = sorted(os.listdir())
    done = call(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert "unsafely" not in done.stderr
    assert sorted(os.listdir()) == before
    assert fault != "taken" or Path("model.arrays.npz").read_text() == "mine"


def test_a_part_may_have_any_name(call):
    save_model("odd.npz", {"file": WEIGHTS, "allow_pickle": WEIGHTS})
    assert call("odd.npz", "--to", "numpy").exit_code == 0
    with np.load("odd.arrays.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["allow_pickle", "file"]
