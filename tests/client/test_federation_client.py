"""A site against a gateway that fails in every way: what it sends, how often, and what it tells."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from scarcity_ray_client import (
    Client,
    PrivateEvaluation,
    SiteNoise,
    Trained,
    UsageError,
    Workload,
    load_model,
)
from scarcity_ray_client.accounting.modes import Accounting
from scarcity_ray_client.connection import MOST_UNSIGNED, GatewayRefused, GatewayUnreachable, Waits
from scarcity_ray_client.errors import AnswerRefused, SiteLedgerRefused
from scarcity_ray_client.federation_client import Ending, FederationClient
from scarcity_ray_client.policy import Policy
from scarcity_ray_client.receipts import ReceiptBatch, SignedReceipt
from scarcity_ray_client.site_file import SiteFile
from scarcity_ray_client.site_home import SiteHome
from scarcity_ray_client.site_ledger import Head, SiteLedger
from scarcity_ray_client.updates import content_digest
from scarcity_ray_client.wire import ErrorAnswer, ErrorCode, RoundState, UpdateAnswer
from tests.client.fake_gateway import BASKET, FEDERATION, FakeGateway, lost_answer, lost_request, said

DAY = 86400.0
pytestmark = pytest.mark.timeout(30)


class Steps(Workload):
    """Each training adds one to all four numbers, and counts itself."""

    def __init__(self):
        self.trained = []

    def clients(self):
        return [Client("ann", "hospitals", num_examples=30, num_persons=30)]

    def initial_model(self):
        return {"w": np.zeros(4, np.float32)}

    def train(self, model, client, round_id):
        self.trained.append(round_id)
        return Trained(delta={"w": np.full(4, 0.25, np.float32)}, num_persons=30)

    def evaluate(self, model):
        return {}

    def evaluate_client(self, model, client):
        return {"accuracy": 0.75}


class Clock:
    """Sleeping takes no time, and is counted."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def waits(self, **changed):
        settings = {"give_up_seconds": 600.0, "jitter": lambda: 0.5, **changed}
        return Waits(clock=lambda: self.now, sleep=self.sleep, **settings)

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def gateway(tmp_path):
    made = FakeGateway(tmp_path / "gateway")
    yield made
    made.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def home(gateway, tmp_path):
    with SiteHome.made(gateway.kit(tmp_path / "ann.zip"), environ={}) as made:
        yield made


@pytest.fixture
def events():
    return []


@pytest.fixture
def client(home, clock, events):
    with FederationClient(home, waits=clock.waits(), tell=events.append, environ={}) as made:
        yield made


def a_site(**changed):
    workload = Steps()
    return SiteFile(workload, workload.codec(), workload.clients()[0], **changed)


def a_policy(epsilon=3.0, unit="client"):
    return Policy("ann", unit, epsilon, 1e-6, "federation")


def goes_on(gateway, rounds, **changed):
    """Publish the next round with each accepted update, and finish after so many."""
    taken = gateway.updates

    class Updates(dict):
        def __setitem__(self, round_id, update):
            super().__setitem__(round_id, update)
            if round_id + 1 < rounds:
                gateway.publish(round_id + 1, **changed)
            else:
                gateway.publish(round_id + 1, RoundState.FINISHED, **changed)

    gateway.updates = Updates(taken)


def kinds(events):
    return [event.kind for event in events]


def test_it_enrols_trains_and_ends_with_the_federation(client, gateway, home, events):
    goes_on(gateway, 3)
    site = a_site()
    assert client.run(site) is Ending.FINISHED
    assert site.workload.trained == [0, 1, 2]
    for round_id, (header, row, _) in gateway.updates.items():
        assert (header.client_id, header.round_id, header.num_examples) == ("ann", round_id, 30)
        assert row.tolist() == [0.25] * 4
    assert sorted(path.name for path in (home.folder / "receipts").iterdir()) == [
        f"77-{round_id}.{end}" for round_id in range(3) for end in ("json", "receipt")
    ]
    assert not list((home.folder / "outbox").iterdir())
    assert not (home.folder / "token").exists()
    assert kinds(events) == ["enrolled", *["training", "accepted"] * 3, "finished", "model"]
    assert client.run(a_site()) is Ending.FINISHED  # another time nothing is left to do


def test_the_last_model_is_kept_as_a_file(client, gateway, home):
    goes_on(gateway, 2)
    client.run(a_site())
    assert load_model(home.folder / "model.npz")["w"].tolist() == gateway.model.tolist() == [2.0] * 4


def test_a_server_that_has_stopped_is_waited_for(client, gateway, home, events, monkeypatch):
    scope, site = gateway.scope, a_site()

    class Updates(dict):
        def __setitem__(self, round_id, update):  # the server stops once it has the update, and names no run
            super().__setitem__(round_id, update)
            gateway.scope = replace(scope, run=0)
            gateway.publish(0, RoundState.STOPPED)

    gateway.updates = Updates()
    back = iter([(0, RoundState.OPEN), (1, RoundState.FINISHED)])

    def comes_back(seconds):
        gateway.scope = scope
        gateway.publish(*next(back))

    monkeypatch.setattr(client, "_pause", comes_back)
    assert client.run(site) is Ending.FINISHED
    assert site.workload.trained == [0], "the round that it has sent is not trained again"
    assert "stopped: " in events[3].text


@pytest.mark.parametrize("fault", [lost_request, lost_answer])
@pytest.mark.parametrize("place", range(4))  # enrolment, round, model, update
def test_an_update_is_sent_again_byte_by_byte(client, gateway, fault, place):
    goes_on(gateway, 1)
    gateway.faults = [lambda handler, answer: answer()] * place + [fault]
    site = a_site()
    assert client.run(site) is Ending.FINISHED
    assert site.workload.trained == [0]
    bodies = {path for path in gateway.asked if path.startswith("PUT /v1/updates")}
    assert len(bodies) == 1
    assert list(gateway.updates) == [0]


def test_after_a_crash_the_kept_update_is_sent_and_nothing_is_trained_anew(client, gateway, home, clock):
    goes_on(gateway, 2)
    client.enrol()
    crashed = a_site()

    def crash(*_):
        raise KeyboardInterrupt

    client._deliver = crash
    with pytest.raises(KeyboardInterrupt):
        client.run(crashed)
    (kept,) = (home.folder / "outbox").iterdir()
    body = kept.read_bytes()
    client.close()
    site = a_site()
    with FederationClient(home, waits=clock.waits(), environ={}) as again:
        assert again.run(site) is Ending.FINISHED
    assert crashed.workload.trained == [0]
    assert site.workload.trained == [1]
    assert gateway.updates[0][2] == body


def test_it_waits_as_long_as_the_gateway_says(client, gateway, clock):
    goes_on(gateway, 1)
    client.enrol()
    busy = said(ErrorAnswer(ErrorCode.BUSY, "busy", retry_after_seconds=40.0))
    many = said(ErrorAnswer(ErrorCode.TOO_MANY, "too many"))
    gateway.faults = [busy, many, many]
    client.run(a_site())
    assert clock.slept[:3] == [40.0 + 0.25, 0.5, 1.0]


def test_it_gives_up_in_the_end_and_says_why(client, gateway, clock):
    client.enrol()
    gateway.faults = [lost_request] * 100
    with pytest.raises(GatewayUnreachable, match=r"no answer after \d+ attempts"):
        client.round()
    assert 500 < clock.now <= 600


@pytest.mark.parametrize("code", [ErrorCode.REVOKED, ErrorCode.FORBIDDEN, ErrorCode.NEWER_VERSION])
def test_a_refusal_is_not_repeated(client, gateway, clock, code):
    client.enrol()
    gateway.refusal = ErrorAnswer(code, "no")
    with pytest.raises(GatewayRefused, match="no"):
        client.run(a_site())
    assert clock.slept == []
    assert len([path for path in gateway.asked if "round" in path]) == 1


@pytest.mark.parametrize(
    "code", [ErrorCode.REFUSED, ErrorCode.ROUND_OVER, ErrorCode.SLOT_TAKEN, ErrorCode.TOO_BIG]
)
def test_a_refused_update_ends_its_round_alone(client, gateway, events, home, code):
    client.enrol()
    goes_on(gateway, 2)
    through = [lambda handler, answer: answer()] * 2

    def refuses(handler, answer):
        gateway.publish(1)
        said(ErrorAnswer(code, "too_stale"))(handler, answer)

    gateway.faults = [*through, refuses]
    site = a_site()
    assert client.run(site) is Ending.FINISHED
    assert site.workload.trained == [0, 1]
    assert list(gateway.updates) == [1]
    assert [event.text for event in events if event.kind == "refused"] == [
        "round 0: the update was not counted: too_stale"
    ]
    assert not list((home.folder / "outbox").iterdir())


def test_a_wrong_clock_is_told_with_how_much(client, gateway):
    client.enrol()
    real = gateway.clock
    gateway.clock = lambda: real() + 7200
    with pytest.raises(GatewayRefused, match=r"clock is 7[12][0-9][0-9] s behind the gateway's; set it"):
        client.run(a_site())


def test_a_revoked_site_is_refused_at_its_next_request(client, gateway):
    from scarcity_ray.gateway.enrolments import Enrolments

    client.enrol()
    client.round()
    with Enrolments.opened(gateway.folder / "register") as sites:
        sites.revoke("ann")
    with pytest.raises(GatewayRefused) as refused:
        client.round()
    assert refused.value.answer.code is ErrorCode.REVOKED


def test_a_spent_token_says_so(client, gateway, home, tmp_path):
    kit = tmp_path / "ann.zip"
    shutil.copy(kit, tmp_path / "copy.zip")
    client.enrol()
    client.enrol()
    with (
        SiteHome.made(tmp_path / "copy.zip", environ={}) as thief,
        pytest.raises(GatewayRefused, match="used"),
    ):
        FederationClient(thief, environ={}).enrol()


def test_another_federation_is_refused(client, gateway):
    client.enrol()
    gateway.scope = replace(gateway.scope, federation_id="another")
    gateway.publish(0)
    with pytest.raises(UsageError, match="serves federation 'another'"):
        client.run(a_site())


@pytest.mark.parametrize("is_kept", [True, False])
def test_an_accepted_round_is_not_trained_anew_when_its_server_was_started_again(
    client, gateway, home, is_kept
):
    """Each start of a server is another run; a row that no basket has any more is asked for again."""
    goes_on(gateway, 1)
    site = a_site(policy=a_policy(50.0))
    gateway.publish(0, row_mu=0.5)
    client.run(site)
    gateway.scope = replace(gateway.scope, run=78)
    if not is_kept:
        gateway.updates = {}
    gateway.publish(0, row_mu=0.5)
    round_asked = client.round

    def then_finished(*given, **more):
        answer = round_asked(*given, **more)
        if gateway.updates and "&after=0" in gateway.asked[-1]:
            gateway.publish(1, RoundState.FINISHED)
        return answer

    client.round = then_finished
    goes_on(gateway, 1)
    assert client.run(site) is Ending.FINISHED
    assert site.workload.trained == ([0] if is_kept else [0, 0])
    with SiteLedger.existing(home.folder / "ledger.sqlite") as ledger:
        rows = 1 if is_kept else 2
        assert ledger.epsilon_spent == Accounting.ZCDP.epsilon_of(0.5 * np.sqrt(rows), 1e-6)


def test_a_federation_begun_anew_is_taken_part_in_from_its_first_round(client, gateway):
    goes_on(gateway, 2)
    site = a_site()
    client.run(site)
    gateway.scope = replace(gateway.scope, run=78)
    gateway.updates = {}
    gateway.publish(0)
    goes_on(gateway, 1)
    assert client.run(site) is Ending.FINISHED
    assert site.workload.trained == [0, 1, 0]


def test_a_large_upload_goes_on_where_it_broke_off(home, clock, tmp_path, monkeypatch):
    monkeypatch.setattr("scarcity_ray_client.connection.RESUMABLE_BYTES", 2**16)
    dimension = 40_000  # three parts
    gateway = FakeGateway(tmp_path / "large", dimension)
    try:
        kit = gateway.kit(tmp_path / "large.zip")
        with (
            SiteHome.made(kit, environ={}) as site,
            FederationClient(site, waits=clock.waits(), environ={}) as client,
        ):
            client.enrol()
            row = np.arange(dimension, dtype=np.float32)
            through = lambda handler, answer: answer()  # noqa: E731
            # HEAD, a part that is lost, one of which the answer is lost, and the rest.
            gateway.faults = [through, lost_request, lost_answer, through, through, lost_answer]
            answer = client.submit(gateway.round, row, 30)
        assert answer.basket_id == "hospitals_basket_0"
        assert np.array_equal(gateway.updates[0][1], row)
        parts = [path for path in gateway.asked if path.startswith("PATCH")]
        assert 4 <= len(parts) <= 8
    finally:
        gateway.close()


def test_a_large_download_goes_on_where_it_broke_off(client, gateway, home):
    client.enrol()
    facts = gateway.round.model

    def half(handler, answer):
        data = gateway.model.tobytes()
        handler.send_response(200)
        handler.send_header("ETag", f'"{facts.sha256}"')
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:6])
        handler.connection.close()
        handler.close_connection = True

    gateway.faults = [half]
    assert client.model(facts).tolist() == [0.0] * 4
    assert gateway.asked[-2:] == ["GET /v1/model", "GET /v1/model bytes=6-"]
    asked = len(gateway.asked)
    assert client.model(facts).tolist() == [0.0] * 4  # kept
    assert len(gateway.asked) == asked
    (kept,) = (home.folder / "model").iterdir()
    kept.write_bytes(b"x" * 16)
    with pytest.raises(UsageError, match="changed on the disk"):
        client.model(facts)
    assert client.model(facts).tolist() == [0.0] * 4


def test_another_model_than_the_named_one_is_never_trained_from(client, gateway):
    client.enrol()
    facts = gateway.round.model
    gateway.publish(1)
    with pytest.raises(GatewayRefused, match="another model"):
        client.model(facts)


def begins_again(gateway, **changed):
    """The server is started again while a site trains: the same round and model, and a run of its own."""

    def begun(handler, answer):
        gateway.scope = replace(gateway.scope, run=78)
        gateway.publish(0, **changed)
        answer()

    return begun


def test_a_row_is_signed_anew_for_a_server_that_was_started_again(client, gateway, events):
    goes_on(gateway, 2, **NOISED)
    gateway.publish(0, **NOISED)
    client.enrol()
    gateway.faults = [lambda handler, answer: answer()] * 2 + [begins_again(gateway, **NOISED)]
    site = a_site(policy=a_policy(unit="person"), noised_alone=True)
    assert client.run(site) is Ending.FINISHED
    assert site.workload.trained == [0, 1]
    assert list(gateway.updates) == [0, 1]
    assert not [event for event in events if event.kind == "refused"]
    first, second = (
        Head().extended(header.site_ledger).num_rows for header, _, _ in gateway.updates.values()
    )
    assert second == first + 1  # no row was drawn or charged anew


def test_a_row_of_another_model_is_not_signed_anew(client, gateway):
    client.enrol()
    gateway.publish(0)
    row = np.full(4, 0.25, np.float32)
    answer = client.round()  # its model was never fetched: nobody knows what the row was made of
    begins_again(gateway)(None, lambda: None)
    assert client.submit(answer, row, 30).code is ErrorCode.REFUSED
    assert gateway.updates == {}


NOISE = SiteNoise(mu=0.3, clip_norm=1.0, min_persons=10, dimension=4)
NOISED = {"noise": NOISE, "unit": "person", "min_persons": 10, "row_mu": 0.3}


def test_rows_are_noised_and_charged_at_the_site(client, gateway, home, events):
    goes_on(gateway, 2, **NOISED)
    gateway.publish(0, asks_evaluation=True, **NOISED)
    site = a_site(policy=a_policy(unit="person"), noised_alone=True)
    assert client.run(site) is Ending.FINISHED
    rows = [row for _, row, _ in gateway.updates.values()]
    assert not np.array_equal(rows[0], np.full(4, 0.25))
    assert not np.array_equal(rows[0], rows[1])
    headers = [header for header, _, _ in gateway.updates.values()]
    assert [header.num_examples for header in headers] == [30, 30]
    told = Head()
    for header in headers:
        assert header.site_ledger.since == 0
        assert told.extended(header.site_ledger) is not None
    assert gateway.evaluations == {}  # where rows are noised no metrics are sent
    assert [header.metrics for header in headers] == [{}, {}]
    ledger = [event for event in events if event.kind == "ledger"]
    assert 0 < ledger[0].facts["epsilon_spent"] < ledger[1].facts["epsilon_spent"] < 3.0


def test_nothing_is_sent_beyond_the_ceiling(client, gateway):
    goes_on(gateway, 50, **NOISED)
    gateway.publish(0, **NOISED)
    site = a_site(policy=a_policy(2.0, "person"))
    assert client.run(site) is Ending.AT_CEILING
    assert 1 <= len(gateway.updates) < 5


def test_a_promise_is_kept_by_the_stated_costs(client, gateway, home, events):
    """Under central noise: the site sees what its rows cost, by what the federation says."""
    goes_on(gateway, 50, row_mu=0.5)
    gateway.publish(0, row_mu=0.5)
    assert client.run(a_site(policy=a_policy(4.0))) is Ending.AT_CEILING
    sent = len(gateway.updates)
    assert 1 <= sent < 5
    assert all(header.site_ledger is None for header, _, _ in gateway.updates.values())
    told = [event for event in events if event.kind == "ledger"][-1]
    assert told.text.endswith("of 4 is spent, if the federation noises each release as it says")
    assert told.facts["epsilon_spent"] == Accounting.ZCDP.epsilon_of(0.5 * np.sqrt(sent), 1e-6)
    with SiteLedger.existing(home.folder / "ledger.sqlite") as ledger:
        assert (ledger.epsilon_spent, ledger.is_proof) == (told.facts["epsilon_spent"], False)
    with pytest.raises(SiteLedgerRefused, match="cannot be opened"):
        SiteLedger.existing(home.folder / "none.sqlite")


def test_a_site_without_a_policy_is_told_that_it_counts_nothing(client, gateway, events):
    goes_on(gateway, 2, row_mu=0.5)
    gateway.publish(0, row_mu=0.5)
    client.run(a_site())
    assert kinds(events).count("no_policy") == 1


def test_where_no_cost_is_stated_it_says_who_keeps_the_ceiling(client, gateway, home, events):
    goes_on(gateway, 2)
    for ceiling, told in ((None, "no ceiling"), (9.0, "epsilon 9")):
        gateway.ceiling = ceiling
        with pytest.raises(UsageError, match=rf"ledger has {told} of this site, and the policy says 3"):
            client.run(a_site(policy=a_policy()))
    assert gateway.updates == {}
    gateway.ceiling = 3.0
    client.run(a_site(policy=a_policy()))
    assert kinds(events).count("no_row_cost") == 1
    assert len(gateway.updates) == 2
    assert not (home.folder / "ledger.sqlite").exists()


def test_nothing_unnoised_is_sent_where_the_site_says_so(client, gateway):
    with pytest.raises(UsageError, match="nothing is sent"):
        client.run(a_site(noised_alone=True))
    assert gateway.updates == {}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"unit": "client"}, "hides one person"),
        ({"private_evaluation": PrivateEvaluation({"accuracy": (0.0, 1.0)}, 60)}, "without noise beside"),
        ({"noise": replace(NOISE, clip_norm=0.5)}, "noise is for contributions of norm 0.5"),
        ({"accounting": Accounting.GAUSSIAN_DP}, "noise is discrete"),
    ],
)
def test_noise_that_hides_less_than_it_says_is_refused(client, gateway, changed, said):
    gateway.publish(0, **{**NOISED, **changed})
    unit = changed.get("unit", "person")
    site = a_site(policy=a_policy(unit=unit), noised_alone=True, person_clip_norm=1.0)
    with pytest.raises(UsageError, match=said):
        client.run(site)
    assert gateway.updates == {}


def test_no_more_is_downloaded_than_was_named(client, gateway, home):
    client.enrol()
    facts = gateway.round.model

    def endless(handler, answer):
        handler.send_response(200)
        handler.send_header("ETag", f'"{facts.sha256}"')
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        for _ in range(64):
            handler.wfile.write(bytes(2**20))

    gateway.faults = [endless]
    with suppress(GatewayUnreachable):
        client.model(facts)
    assert sum(path.stat().st_size for path in (home.folder / "model").iterdir()) <= facts.num_bytes
    gateway.publish(0, model=replace(facts, num_bytes=10**12))
    with pytest.raises(UsageError, match="is not of 4 numbers"):
        client.run(a_site())


def test_a_redirect_is_not_followed_and_no_success(client, gateway):
    client.enrol()

    def elsewhere(handler, answer):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.send_response(302)
        handler.send_header("Location", "https://127.0.0.1:1/")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    gateway.faults = [elsewhere] * MOST_UNSIGNED
    with pytest.raises(GatewayUnreachable, match="has not signed this answer of HTTP status 302"):
        client.evaluate(0, {"accuracy": 1.0}, 1)


def test_a_ledger_that_began_with_noise_is_never_used_without(client, gateway):
    gateway.publish(0, **NOISED)
    goes_on(gateway, 2, unit="person", min_persons=10, row_mu=0.5)
    with pytest.raises(SiteLedgerRefused, match="is_proof"):
        client.run(a_site(policy=a_policy(unit="person")))
    assert list(gateway.updates) == [0]


def test_an_older_copy_of_the_ledger_sends_nothing(client, gateway):
    gateway.publish(0, site_ledger=Head(9, bytes(32)), **NOISED)
    with pytest.raises(SiteLedgerRefused, match="older copy"):
        client.run(a_site(policy=a_policy(unit="person")))
    assert gateway.updates == {}


def test_a_policy_for_another_unit_sends_nothing(client, gateway):
    gateway.publish(0, **NOISED)
    with pytest.raises(UsageError, match="protects each client"):
        client.run(a_site(policy=a_policy()))


def test_evaluations_are_told_where_they_are_asked_for(client, gateway):
    asked = PrivateEvaluation({"accuracy": (0.0, 1.0)}, 60)
    gateway.publish(0, asks_evaluation=True, private_evaluation=asked)
    goes_on(gateway, 1)
    client.run(a_site())
    assert gateway.evaluations[0].metrics == {"accuracy": 0.75}
    assert gateway.updates[0][0].meta == {"accuracy_times_examples": 0.25, "accuracy_examples": 0.5}


def test_a_training_that_fails_is_told_and_the_next_round_goes_on(client, gateway, events):
    site = a_site()

    def train(model, client, round_id):
        gateway.publish(1, RoundState.FINISHED)
        raise ValueError("no table")

    site.workload.train = train
    assert client.run(site) is Ending.FINISHED
    (told,) = [event for event in events if event.kind == "not_trained"]
    assert "no table" in told.text
    assert gateway.updates == {}


def test_a_clipped_row_says_so(client, gateway, events):
    gateway.publish(0, clip_norm=0.1)
    goes_on(gateway, 1)
    client.run(a_site())
    assert [event.text for event in events if event.kind == "clipped"] == [
        "this update's norm is 0.5, and it is clipped to 0.1"
    ]


def test_noise_above_what_it_hides_is_told_once(client, gateway, events):
    loud = {**NOISED, "noise": replace(NOISE, mu=0.01), "row_mu": 0.01}
    gateway.publish(0, **loud)
    goes_on(gateway, 2, **loud)
    client.run(a_site())
    assert kinds(events).count("noise_above_signal") == 1


def test_another_models_size_is_refused(client, gateway):
    gateway.round = replace(gateway.round, vector_dim=5)
    with pytest.raises(UsageError, match="has 4 numbers, and the federation's 5"):
        client.run(a_site())


def test_a_certificate_is_renewed_before_it_expires(home, gateway, clock, events):
    now = [1.0]
    client = FederationClient(
        home, waits=clock.waits(), tell=events.append, environ={}, clock=lambda: time.time() + now[0]
    )
    with client:
        client.enrol()
        first = home.certificate_life
        goes_on(gateway, 1)
        now[0] = 61 * DAY
        gateway.clock = lambda: time.time() + now[0]
        gateway.publish(0, RoundState.FINISHED)
        assert client.run(a_site()) is Ending.FINISHED
    assert "renewed" in kinds(events)
    assert home.certificate_life != first or (home.folder / "tls.pem").exists()


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_an_expired_certificate_asks_for_a_kit_and_a_site_with_a_wrong_clock_is_told(
    home, gateway, clock, monkeypatch, seconds
):
    send = http.client.HTTPSConnection.send

    def late(connection, data):
        if connection.sock is None:
            connection.connect()
            time.sleep(seconds)  # the gateway refuses and closes before the request is on its way
        send(connection, data)

    monkeypatch.setattr(http.client.HTTPSConnection, "send", late)
    off = [0.0]
    now = lambda: time.time() + off[0]  # noqa: E731
    with FederationClient(home, waits=clock.waits(), environ={}, clock=now) as client:
        gateway.issued = lambda csr, name: gateway.certificates.issue(
            csr, name, days=1, now=datetime.now(UTC) - timedelta(days=2)
        )
        client.enrol()
        with pytest.raises(UsageError, match=r"expired on .* new kit"):
            client.run(a_site())
        off[0] = -2.5 * DAY  # the gateway does not take it, whatever the site believes
        with pytest.raises(GatewayUnreachable, match="does not take this site's certificate"):
            client.round()


@pytest.mark.parametrize("fault", [None, lost_request, lost_answer])
def test_a_key_is_changed_though_the_answer_is_lost(client, gateway, home, fault):
    client.enrol()
    old = home.identity().public_bytes
    if fault is not None:
        gateway.faults = [fault] * 2

        def give_up(seconds):
            raise KeyboardInterrupt

        client._waits = Waits(sleep=give_up)
        with pytest.raises(KeyboardInterrupt):
            client.change_key()
        assert home.has_new_identity()
        client.close()
        client._waits = None
    else:
        client.change_key()
    goes_on(gateway, 1)
    client.run(a_site())
    if fault is lost_request:
        client.change_key()
    assert home.identity().public_bytes != old
    assert not home.has_new_identity()
    assert client.me().client_id == "ann"


def test_progress_that_cannot_be_read_is_an_error(client, home):
    client.enrol()
    (home.folder / "progress.json").write_text("{")
    with pytest.raises(UsageError, match=r"progress.json"):
        client.run(a_site())


def test_a_receipt_is_kept_as_the_gateway_gave_it(client, gateway, home):
    goes_on(gateway, 1)
    client.run(a_site())
    receipt = SignedReceipt.from_text((home.folder / "receipts" / "77-0.receipt").read_text())
    assert receipt.refusal() == ""
    assert json.loads((home.folder / "receipts" / "77-0.json").read_bytes())["basket_id"]


def unsigned(status, body, count=1):
    """Whoever ends TLS answers in the gateway's place, so many times."""

    def fault(handler, _):
        handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return [fault] * count


THROUGH = [lambda handler, answer: answer()]
REFUSALS = [
    ErrorCode.REFUSED,
    ErrorCode.ROUND_OVER,
    ErrorCode.SLOT_TAKEN,
    ErrorCode.REVOKED,
    ErrorCode.REPLAYED,
]


@pytest.mark.parametrize("code", REFUSALS)
def test_an_answer_that_the_federation_has_not_signed_is_not_believed(client, gateway, home, code):
    """A forged refusal costs time alone: the same bytes are sent again, and nothing is trained anew."""
    goes_on(gateway, 1)
    client.enrol()
    gateway.faults = [*THROUGH * 2, *unsigned(code.status, ErrorAnswer(code, "no").to_json(), 3)]
    site = a_site(policy=a_policy(epsilon=50.0))
    gateway.ceiling = 50.0
    gateway.publish(0, row_mu=0.5)
    assert client.run(site) is Ending.FINISHED
    assert site.workload.trained == [0]
    assert len({path for path in gateway.asked if path.startswith("PUT")}) == 1
    assert list(gateway.updates) == [0]


def test_an_acknowledgement_that_is_not_signed_is_recorded_nowhere(client, gateway, home):
    client.enrol()
    goes_on(gateway, 1)
    body = UpdateAnswer("ann", 0, 0, BASKET).to_json()
    gateway.faults = [*THROUGH * 2, *unsigned(201, body, MOST_UNSIGNED)]
    site = a_site()
    with pytest.raises(GatewayUnreachable, match="has not signed this answer of HTTP status 201"):
        client.run(site)
    assert gateway.updates == {}
    assert not (home.folder / "receipts").exists()
    assert client.run(site) is Ending.FINISHED
    assert site.workload.trained == [0]
    assert list(gateway.updates) == [0]


def test_a_forged_round_is_not_trained_in(client, gateway, home):
    """It would cost the site's own budget, or have it send without noise."""
    goes_on(gateway, 1)
    client.enrol()
    forged = replace(gateway.round, round_id=5, row_mu=3.0)
    gateway.faults = unsigned(200, forged.to_json(), 2)
    site = a_site()
    assert client.run(site) is Ending.FINISHED
    assert site.workload.trained == [0]


def forged(**changed):
    """An acknowledgement of another update than was sent, signed by a basket of its maker's."""

    def fault(handler, answer):
        basket = handler.gateway.basket
        told = {
            "client": "ann",
            "round": 0,
            "row": np.full(4, 0.25, np.float32),
            "run": 77,
            "in": 0,
            **changed,
        }
        scope = told.get("federation", FEDERATION), told["run"], BASKET, ""
        row = content_digest(told["row"])
        receipt = ReceiptBatch(scope, (told["round"],), (told["client"],), bytes(32), row).signed(basket)[0]
        receipt = replace(receipt, **told.get("receipt", {}))
        body = UpdateAnswer("ann", told["in"], told.get("sequence", 0), BASKET, receipt.to_text()).to_json()
        unsigned(201, body)[0](handler, answer)

    return fault


FORGERIES = {
    "row": {"row": np.zeros(4, np.float32)},
    "client": {"client": "bob"},
    "round": {"round": 1},
    "answer": {"in": 1},
    "sequence": {"sequence": 1},
    "run": {"run": 78},
    "federation": {"federation": "another"},
    "signature": {"receipt": {"signature": bytes(64)}},
    "salt": {"receipt": {"salt": bytes([1]) * 32}},
    "closed": {"receipt": {"salt": b"", "digest": b""}},
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_acknowledgement_is_not_believed(gateway, tmp_path, clock, name):
    """With a kit of an older release, where the receipt alone tells."""
    kit = gateway.kit(tmp_path / "old.zip", answer_key="")
    events = []
    with (
        SiteHome.made(kit, environ={}) as home,
        FederationClient(home, waits=clock.waits(), tell=events.append, environ={}) as client,
    ):
        client.enrol()
        goes_on(gateway, 1)
        gateway.faults = [*THROUGH * 2, *[forged(**FORGERIES[name])] * 3]
        site = a_site()
        with pytest.raises(AnswerRefused, match="may have forged it"):
            client.run(site)
        (kept,) = (home.folder / "outbox").iterdir()
        body = kept.read_bytes()
        assert not (home.folder / "receipts").exists()
        assert client.run(site) is Ending.FINISHED
    assert site.workload.trained == [0]
    assert gateway.updates[0][2] == body
    assert kinds(events).count("answers_not_signed") == 1


def test_an_enrolment_that_another_key_was_put_into_is_noticed(client, gateway):
    """Whoever ends TLS could enrol a key of its own with the site's token."""

    def another(handler, answer):
        from scarcity_ray_client import IdentityKeyPair
        from scarcity_ray_client.wire import EnrolRequest

        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        asked = EnrolRequest.from_json(body)
        mine = EnrolRequest.signed(
            IdentityKeyPair.generate(), asked.token, asked.client_id, asked.csr
        ).to_json()
        handler.rfile = io.BytesIO(mine)
        handler.headers.replace_header("Content-Length", str(len(mine)))
        answer()
        handler.close_connection = True

    gateway.faults = [another]
    with pytest.raises(GatewayRefused, match="the token was used"):
        client.enrol()
