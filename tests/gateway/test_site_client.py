"""The client's package against the real gateway: kits, rounds, keys, revocation."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from scarcity_ray.cli.main import main
from scarcity_ray_client.command import ExitCode, command
from scarcity_ray_client.connection import GatewayConnection, GatewayUnreachable
from scarcity_ray_client.receipts import ReleaseRecord, SignedReceipt
from tests.gateway.sites import Served, job

WORKLOAD = '''
import os
import signal
import time
import numpy as np
from scarcity_ray_client import Client, Workload, Trained

class Site(Workload):
    """Moves the model a step towards its target."""
    def __init__(self, name, target, ending='', persons=None):
        self.name, self.target, self.ending, self.persons = name, target, ending, persons
    def clients(self):
        return [Client(self.name, "wards", num_examples=30, num_persons=self.persons)]
    def initial_model(self):
        return {"w": np.zeros(2, np.float32)}
    def train(self, model, client, round_id):
        if self.ending:
            os.kill(os.getpid(), getattr(signal, self.ending))
            time.sleep(60)
        if self.persons:
            return Trained(delta={"w": np.asarray(self.target, np.float32)}, num_persons=self.persons)
        return Trained(model={"w": np.asarray(self.target, np.float32)}, metrics={"loss": 0.5})
    def evaluate(self, model):
        return {}
'''


def said(*words: object) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*words: object) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 2, done.output
    return done.stderr


NOISED = {
    "privacy": {
        "unit": "person", "noise": "site", "person_clip_norm": 1.0, "min_persons": 10, "row_epsilon": 1.0,
        "row_delta": 1e-6,
    },
    "layer1": {"aggregation_method": "mean", "min_updates": 1, "clip_norm": 20.0},
    "layer2": {
        "noise": "discrete_gaussian", "use_secure_aggregation": False, "clip_norm": 10.0, "min_baskets": 2,
    },
    "gossip_budget_share": 0.0,
    "expose_basket_models": False,
    "total_epsilon": 8.0,
    "total_delta": 1e-6,
    "receipts": True,
}  # fmt: skip


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest):
    federation = getattr(request, "param", None)
    made = Served(tmp_path, job(tmp_path, rounds=2, federation=federation))
    made.start()
    # The run's own file says port 0, as the job does: the command is told where it listens.
    config = made.run / "config.yaml"
    config.write_text(config.read_text().replace("url: null", f"url: https://localhost:{made.port}"))
    return made


def a_kit(served: Served, name: str, *options: str) -> Path:
    kit = served.folder / f"{name}.zip"
    told = said("client-kit", "make", served.run, name, "--domain", name[0], "--out", kit, *options)
    assert f"scarcity-ray-client run {name}.zip" in told
    return kit


def a_workload(served: Served, name: str, target: list[float], ending: str = "") -> Path:
    (served.folder / "wards.py").write_text(WORKLOAD)
    file = served.folder / f"{name}.yaml"
    args = f"{{name: {name}, target: {target}, ending: {ending or repr('')}}}"
    file.write_text(f"workload: {{class: 'wards:Site', args: {args}}}")
    return file


@pytest.mark.parametrize("served", [{"receipts": True}], indirect=True, ids=["receipts"])
def test_two_sites_train_with_nothing_but_their_kits(served: Served, capsys) -> None:
    ended: dict[str, int] = {}
    files = {name: a_workload(served, name, target) for name, target in (("a", [1, 0]), ("b", [0, 1]))}
    kits = {name: a_kit(served, name) for name in files}
    listed = said("client-kit", "list", served.run)
    assert "a  a  invited" in listed

    def site(name: str) -> None:
        ended[name] = command(["run", str(kits[name]), str(files[name])], environ={})

    threads = [threading.Thread(target=site, args=(name,)) for name in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert ended == {"a": ExitCode.DONE, "b": ExitCode.DONE}
    outcome = served.join()
    assert [record.accepted for record in outcome.rounds] == [2, 2]
    told = capsys.readouterr().out
    assert told.count("accepted by basket") == 4
    assert "the federation has finished" in told
    kept = sorted((kits["a"].with_suffix("") / "receipts").glob("*.receipt"))
    published = (served.run / "releases.jsonl").read_text(encoding="utf-8").splitlines()
    releases = [ReleaseRecord.from_text(line) for line in published]
    assert len(kept) == len(releases) == 2
    for path, release in zip(kept, releases, strict=True):
        statement = SignedReceipt.from_text(path.read_text()).statement
        assert (statement.federation_id, statement.basket_id) in {
            (root.federation_id, root.basket_id) for root in release.roots if root.is_valid
        }


@pytest.mark.long
@pytest.mark.parametrize("served", [NOISED], indirect=True, ids=["noised"])
def test_sites_that_noise_their_rows_keep_ceilings_and_receipts(served: Served) -> None:
    ended: dict[str, int] = {}

    def site(name: str, target: list[float], epsilon: float) -> None:
        file = a_workload(served, name, target)
        text = file.read_text().replace("}}", ", persons: 30}}")
        ceiling = f"{{unit: person, lifetime_epsilon: {epsilon}, delta: 1.0e-6}}"
        file.write_text(f"{text}\npolicy: {ceiling}\nnoise: site\nperson_clip_norm: 1.0\n")
        ended[name] = command(["run", str(kits[name]), str(file)], environ={})

    kits = {name: a_kit(served, name) for name in "ab"}
    threads = [
        threading.Thread(target=site, args=asked) for asked in (("a", [1, 0], 1.2), ("b", [0, 1], 8.0))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert ended == {"a": ExitCode.AT_CEILING, "b": ExitCode.DONE}
    assert [record.accepted for record in served.join().rounds] == [2, 1]
    receipts = sorted((kits["a"].with_suffix("") / "receipts").glob("*.receipt"))
    (receipt,) = [SignedReceipt.from_text(path.read_text()) for path in receipts]
    assert (receipt.refusal(), receipt.statement.client_id, receipt.statement.round_id) == ("", "a", 0)


def ends_with_both(served: Served, kit: Path, file: Path) -> None:
    """Another site comes, and both train to the end."""
    other, quick = a_kit(served, "b"), a_workload(served, "b", [0, 1])
    beside = threading.Thread(target=command, args=(["run", str(other), str(quick)], {}))
    beside.start()
    assert command(["run", str(kit.with_suffix("")), str(file)], environ={}) is ExitCode.DONE
    beside.join(30)
    assert [record.accepted for record in served.join().rounds] == [2, 2]


@pytest.mark.long
def test_a_site_that_is_ended_in_its_training_goes_on(served: Served, capsys) -> None:
    kit, file = a_kit(served, "a"), a_workload(served, "a", [1, 0], "SIGTERM")
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert command(["run", str(kit), str(file)], environ={}) is ExitCode.INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    a_workload(served, "a", [1, 0])
    kit.unlink()  # it is of no more use
    ends_with_both(served, kit, file)


@pytest.mark.slow
def test_a_site_that_is_killed_in_its_training_goes_on(served: Served) -> None:
    kit, file = a_kit(served, "a"), a_workload(served, "a", [1, 0], "SIGKILL")
    words = [sys.executable, "-m", "scarcity_ray_client", "run", str(kit), str(file), "--format", "json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert '"event": "training"' in done.stdout
    a_workload(served, "a", [1, 0])
    ends_with_both(served, kit, file)


def unreachable(*_: object, **__: object) -> None:
    raise GatewayUnreachable("localhost: no answer")


def test_a_site_is_rotated_and_revoked_while_it_is_served(served: Served, capsys, monkeypatch) -> None:
    kit = a_kit(served, "a")
    home = kit.with_suffix("")
    assert command(["enrol", str(kit)], environ={}) is ExitCode.DONE
    assert command(["enrol", str(kit)], environ={}) is ExitCode.DONE
    certificate, key = (home / "tls.pem").read_bytes(), (home / "identity.pem").read_bytes()
    assert command(["rotate", str(home)], environ={}) is ExitCode.DONE
    assert (home / "tls.pem").read_bytes() != certificate
    assert (home / "identity.pem").read_bytes() != key
    assert command(["status", str(home)], environ={}) is ExitCode.DONE
    assert "site a of domain a, basket a_basket_0" in capsys.readouterr().out
    assert "a  a  enrolled, certificate 90 days" in said("client-kit", "list", served.run)

    with monkeypatch.context() as alone:  # as where the server has ended
        alone.setattr(GatewayConnection, "ask", unreachable)
        assert command(["status", str(home)], environ={}) is ExitCode.FAILED
    told = capsys.readouterr()
    assert "site a, as its own folder has it\nthis site's own ledger: none" in told.out
    assert "\ncertificate: 90" in told.out
    assert "no answer" in told.err

    said("client-kit", "revoke", served.run, "a")
    assert command(["status", str(home)], environ={}) is ExitCode.FAILED
    assert "revoked" in capsys.readouterr().err
    assert "neither enrolled nor invited" in refused("client-kit", "revoke", served.run, "nobody")
    assert "--again" in refused(
        "client-kit", "make", served.run, "a", "--domain", "a", "--out", home / "x.zip"
    )

    # Invited again, it comes back: with the key that it has, or under another one.
    for option in ([], ["--new-key"]):
        key = (home / "identity.pem").read_bytes()
        kit.unlink()
        a_kit(served, "a", "--again")
        assert command(["enrol", str(kit), *option], environ={}) is ExitCode.DONE
        assert command(["status", str(kit)], environ={}) is ExitCode.DONE
        assert ((home / "identity.pem").read_bytes() == key) is (not option)


def test_a_kit_holds_no_private_key_and_is_its_owners_alone(served: Served) -> None:
    import zipfile

    kit = a_kit(served, "a", "--feature", "1.5")
    assert kit.stat().st_mode & 0o077 == 0
    with zipfile.ZipFile(kit) as held:
        assert sorted(held.namelist()) == ["README.txt", "answers.key", "authority.pem", "kit.json", "token"]
        texts = b"".join(held.read(name) for name in held.namelist())
    assert b"PRIVATE KEY" not in texts
    assert "exists" in refused("client-kit", "make", served.run, "a", "--domain", "a", "--out", kit)


def test_what_is_served_nowhere_gets_no_kit(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: x\nworkload: {class: a:B}\n")
    assert "no section gateway" in refused("client-kit", "list", file)
    file.write_text("name: x\nworkload: {class: a:B}\ngateway: {port: 0}\n")
    assert "folder of the run" in refused("client-kit", "list", file)
    file.write_text(
        f"name: x\nworkload: {{class: a:B}}\ngateway: {{port: 0}}\nfederation: {{storage_path: {tmp_path}}}\n"
    )
    assert said("client-kit", "list", file) == ""
    assert "gateway.url" in refused("client-kit", "make", file, "a", "--domain", "a")
    assert "holds no config.yaml" in refused("client-kit", "list", tmp_path)


def test_keys_are_made_shown_and_renewed(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    said("keys", "init", folder, "--host", "localhost", "--host", "192.0.2.7")
    shown = said("keys", "show", folder)
    assert "server      365 days left for localhost, 192.0.2.7" in shown
    said("keys", "renew", folder)
    assert said("keys", "show", folder) != shown
    assert "exists" in refused("keys", "init", folder, "--host", "localhost")
    assert "host" in refused("keys", "init", tmp_path / "other", "--host", "http://x")
    assert len(said("keys", "show", folder, "--format", "json").splitlines()) == 3
    assert "scarcity-ray keys init" in refused("keys", "show", tmp_path / "nowhere")
