"""PyTorch's modules and state_dicts as models; skipped, and said so, where PyTorch is not installed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from scarcity_ray_client import (
    Client,
    ModelCodec,
    ModelRefused,
    ModelWarning,
    Trained,
    Update,
    UsageError,
    Workload,
    export_model,
    load_model,
    save_model,
    train_client,
)

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed: pip install 'scarcity-ray-client[torch]'"
)
nn = torch.nn
torch.set_num_threads(1)


def network(dtype=None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 3)).to(dtype)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(5, 3)
        self.decoder = nn.Linear(3, 5, bias=False)
        self.decoder.weight = self.encoder.weight


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and x.dtype == y.dtype and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_module_comes_back_exactly(dtype):
    model = network(dtype)
    codec = ModelCodec(model)
    assert codec.dimension == sum(p.numel() for p in model.parameters())
    assert [part.name for part in codec.parts] == list(model.state_dict())
    again = codec.decode(codec.encode(model))
    assert same(model, again)
    assert all(p.requires_grad and p.is_leaf for p in again.parameters())
    assert type(again) is type(model)
    as_dict = ModelCodec(model.state_dict())
    np.testing.assert_array_equal(as_dict.encode(model.state_dict()), codec.encode(model))
    made = as_dict.decode(codec.encode(model))
    assert list(made) == list(model.state_dict())
    assert all(torch.equal(made[name], value) for name, value in model.state_dict().items())
    model.load_state_dict(made)


def test_float64_comes_back_to_the_nearest_float32():
    model = network(torch.float64)
    codec = ModelCodec(model)
    for new, old in zip(codec.decode(codec.encode(model)).parameters(), model.parameters(), strict=True):
        assert new.dtype == torch.float64
        assert torch.equal(new, old.float().double())


def test_a_state_dict_is_taken_for_the_modules():
    model = network()
    codec = ModelCodec(model)
    np.testing.assert_array_equal(codec.encode(model.state_dict()), codec.encode(model))
    delta = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    assert (codec.read_delta(delta) == 1).all()
    numpy_delta = {name: value.numpy() for name, value in delta.items()}
    assert (codec.read_delta(numpy_delta) == 1).all()
    with pytest.raises(ModelRefused, match="this is a model"):
        codec.read_delta(model)


def test_batchnorms_counter_is_kept_and_its_statistics_are_averaged_with_a_warning():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with pytest.warns(ModelWarning, match=r"1\.running_mean.*GroupNorm"):
        codec = ModelCodec(model)
    trained = [part.name for part in codec.trained]
    assert "1.running_var" in trained
    assert "1.num_batches_tracked" not in trained
    after = codec.decode(codec.encode(model))
    after(torch.randn(16, 2))
    assert after[1].num_batches_tracked == 1
    vector = codec.encode(model) + codec.delta(model, after)
    assert codec.decode(vector)[1].num_batches_tracked == 0
    assert torch.allclose(codec.decode(vector)[1].running_mean, after[1].running_mean)
    assert (codec.decode(vector - 5)[1].running_var == 0).all()


def test_frozen_parameters_stay_out_of_the_vector():
    model = network()
    model[0].requires_grad_(False)
    codec = ModelCodec(model)
    assert codec.dimension == sum(p.numel() for p in model.parameters() if p.requires_grad)
    made = codec.decode(codec.encode(model) + 1)
    assert torch.equal(made[0].weight, model[0].weight)
    assert not made[0].weight.requires_grad


def test_tied_weights_are_counted_once_and_stay_tied():
    model = Tied()
    for given in (model, model.state_dict()):
        codec = ModelCodec(given)
        assert codec.dimension == 15
        made = codec.decode(np.arange(15, dtype=np.float32))
        if isinstance(made, nn.Module):
            assert made.encoder.weight is made.decoder.weight
            made = made.state_dict()
        assert made["encoder.weight"].data_ptr() == made["decoder.weight"].data_ptr()
    one = torch.zeros(4, 4)
    with pytest.raises(ModelRefused, match="shares part of its memory"):
        ModelCodec({"a": one, "b": one.t()[:2]})


def test_decoding_leaves_the_codec_and_other_models_alone():
    model = network()
    codec = ModelCodec(model)
    vector = codec.encode(model)
    made = codec.decode(vector)
    with torch.no_grad():
        for parameter in [*made.parameters(), *model.parameters()]:
            parameter.add_(1.0)
    np.testing.assert_array_equal(codec.encode(codec.decode(vector)), vector)
    again = pickle.loads(pickle.dumps(codec))
    np.testing.assert_array_equal(again.encode(again.decode(vector)), vector)


def quantised():
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


NOT_CARRIED = {
    "meta tensor": lambda: torch.ones(2, device="meta"),
    "sparse": lambda: torch.ones(2, 2).to_sparse(),
    "not dense": lambda: torch.ones(2, 2).to_sparse_csr(),
    "quantised": quantised,
    "complex": lambda: torch.ones(2, dtype=torch.complex64),
    "float8": lambda: torch.ones(2).to(torch.float8_e4m3fn),
    "empty": lambda: torch.ones(0),
    "no shape yet": lambda: nn.LazyLinear(3).weight,
    "Linear is not carried": lambda: nn.Linear(1, 1),
}


@pytest.mark.parametrize("words", NOT_CARRIED)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_what_cannot_be_carried_is_refused_by_name(words):
    with pytest.raises(ModelRefused) as refused:
        ModelCodec({"good": torch.ones(1), "bad": NOT_CARRIED[words]()})
    assert (refused.value.part, refused.value.flaw) == ("bad", "unsupported")
    assert words.split()[0] in str(refused.value)


def test_a_module_of_which_a_part_cannot_be_carried_is_refused_by_name():
    with pytest.raises(ModelRefused, match=r"0\.weight: it has no shape yet"):
        ModelCodec(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(ModelRefused, match=r"weight: it is a meta tensor"):
        ModelCodec(nn.Linear(2, 2, device="meta"))

    class WithState(nn.Linear):
        def get_extra_state(self) -> str:
            return "vocabulary"

    with pytest.raises(ModelRefused, match="_extra_state: a str is not carried"):
        ModelCodec(WithState(2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_saved_module_is_loaded_and_exported(tmp_path, dtype):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).to(dtype)
    model[1].num_batches_tracked += 4
    saved, exported = tmp_path / "model.npz", tmp_path / "model.pt"
    save_model(saved, model)
    torch.manual_seed(1)
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).to(dtype)
    assert same(load_model(saved, like=other), model)
    assert not same(other, model)
    export_model(saved, exported, "torch")
    state = torch.load(exported, weights_only=True)
    other.load_state_dict(state)
    assert same(other, model)
    assert list(load_model(saved)) == list(model.state_dict())
    with pytest.raises(ModelRefused, match=r"0\.weight"):
        load_model(saved, like=nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    with pytest.raises(UsageError, match="torch or numpy"):
        export_model(saved, exported, "onnx")  # type: ignore[arg-type]


def test_tied_weights_are_saved_once(tmp_path):
    save_model(tmp_path / "tied.npz", Tied())
    made = load_model(tmp_path / "tied.npz", like=Tied())
    assert made.encoder.weight is made.decoder.weight
    assert sorted(np.load(tmp_path / "tied.npz")) == ["0", "header"]


class Images(Workload):
    def __init__(self, delta: str) -> None:
        self.kind = delta

    def clients(self):
        return [Client("a", "images")]

    def initial_model(self):
        return network()

    def train(self, model, client, round_id):
        torch.manual_seed(round_id)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = nn.functional.cross_entropy(model(torch.randn(8, 1, 4, 4)), torch.arange(8) % 3)
        loss.backward()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimiser.step()
        state = model.state_dict()
        return {
            "model": lambda: Trained(model=model, metrics={"loss": loss.detach()}),
            "state": lambda: Trained(model=state, metrics={"loss": loss.detach()}),
            "delta": lambda: Trained(
                delta={n: state[n] - before[n] for n in state}, metrics={"loss": loss.detach()}
            ),
            "module": lambda: Trained(delta=model),
            "in place": lambda: Trained(delta=state),
        }[self.kind]()

    def evaluate(self, model):
        return {}


def test_a_module_is_trained_in_place_or_as_a_delta():
    updates = []
    for kind in ("model", "state", "delta"):
        workload = Images(kind)
        codec = workload.codec()
        update = train_client(workload, codec, codec.encode(network()), workload.clients()[0], 3)
        assert isinstance(update, Update), update
        assert update.metrics["loss"] > 0
        updates.append(update.delta)
    np.testing.assert_array_equal(updates[0], updates[1])
    np.testing.assert_allclose(updates[0], updates[2], atol=1e-7)
    assert updates[0].any()


@pytest.mark.parametrize("kind", ["module", "in place"])
def test_a_model_given_as_delta_is_refused_where_it_can_be_told(kind):
    workload = Images(kind)
    codec = workload.codec()
    refusal = train_client(workload, codec, codec.encode(network()), workload.clients()[0], 3)
    assert "give model=" in str(refusal)
