"""Any order of uploads, copies and deaths: what was accepted is answered so, and nothing else is."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.baskets import Receipt, Rejection
from scarcity_ray.gateway.enrolments import Enrolment
from scarcity_ray.gateway.intake import Accepted, Upload, _answered, _known
from scarcity_ray.gateway.register import Claim, ClaimKind, Outcome, Register
from scarcity_ray_client.wire import ErrorAnswer, UpdateAnswer, UpdateHeader

NAMES = {
    "body": "body",
    "copy": "body",  # another row beside its signed head, which whoever ends TLS has put there
    "other": "other",  # that the site has signed for the same place
    "bad": "bad",  # and one that is refused for what it is
}
ACTS = st.one_of(
    st.tuples(st.just("send"), st.sampled_from(sorted(NAMES))),
    st.tuples(st.sampled_from(["go on", "go on", "die", "stay silent"]), st.integers(0, 3)),
    st.tuples(st.just("restart"), st.just(0)),
)


@dataclass
class Basket:
    """It accepts one update of a client, round and sequence, whatever it has answered."""

    accepted: str | None = None

    def judge(self, body: str) -> Receipt:
        if body == "copy":
            return Receipt(False, Rejection.BAD_SIGNATURE, "b", 0)
        if body == "bad":
            return Receipt(False, Rejection.NOT_FINITE, "b", 0)
        if self.accepted is not None:
            reason = Rejection.REPLAYED if self.accepted == body else Rejection.SEQUENCE_USED
            return Receipt(False, reason, "b", 0)
        self.accepted = body
        return Receipt(True, None, "b", 0, signed_by(body))


def signed_by(body: str) -> Any:
    return [SimpleNamespace(to_text=lambda: f"receipt of {body}")]


@dataclass
class Sending:
    """An upload on its way through one gateway: claimed, then judged, then settled."""

    body: str
    upload: Upload
    claim: Claim
    outcome: Outcome | None = None
    answer: Accepted | ErrorAnswer | None = None


@dataclass
class Gateways:
    """Gateways around one register and one basket."""

    folder: Path
    basket: Basket = field(default_factory=Basket)
    under_way: list[Sending] = field(default_factory=list)
    told: list[tuple[str, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.register = Register(str(self.folder / "gateway"), "f", 600.0, 60.0, None, is_mutual=False)

    def restart(self) -> None:
        self.register.close()
        self.__post_init__()

    def send(self, body: str) -> Sending:
        name = hashlib.sha256(NAMES[body].encode()).hexdigest()
        header = UpdateHeader("a", 0, 0, 1, None, bytes(64))
        upload = Upload(Enrolment("a", "north", bytes(32)), header, np.zeros(1, np.float32), name)
        (claim,) = self.register.claim([upload.slot])
        made = Sending(body, upload, claim)
        answer = _known(claim)
        if isinstance(answer, Accepted):
            self.tell(body, answer)
        made.answer = answer
        if answer is None:
            self.under_way.append(made)
        return made

    def go_on(self, sending: Sending, *, is_known: bool = True) -> None:
        if sending.outcome is None:
            judged = self.basket.judge(sending.body)
            if not is_known:  # the basket's actor died with its answer
                judged = Receipt(False, Rejection.BUSY, "b", 0)
            sending.answer, sending.outcome = _answered(sending.upload, judged)
            return
        (stands,) = self.register.settle([sending.outcome])
        self.under_way.remove(sending)
        if stands is not None:
            sending.answer = Accepted(stands, True)
            self.tell(sending.body, sending.answer)
        assert stands is not None or not isinstance(sending.answer, Accepted)

    def tell(self, body: str, answer: Accepted) -> None:
        assert self.basket.accepted is not None, "nothing is acknowledged that no basket has"
        assert NAMES[body] == NAMES[self.basket.accepted], "nor anything but what it has"
        told = UpdateAnswer.from_json(answer.answer)
        assert told.receipt in (None, f"receipt of {self.basket.accepted}")
        self.told.append((body, answer.answer))

    def whole(self, body: str) -> Sending:
        """An upload that nothing disturbs."""
        made = self.send(body)
        while made in self.under_way:
            self.go_on(made)
        return made


@given(st.lists(ACTS, max_size=16))
def test_an_accepted_update_is_answered_so_whatever_comes_beside_it(acts: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")) as place:
        gateways = Gateways(Path(place))
        for act, what in acts:
            if act == "send":
                gateways.send(what)
            elif act == "restart":
                gateways.restart()
            elif gateways.under_way:
                sending = gateways.under_way[what % len(gateways.under_way)]
                if act == "die":
                    gateways.under_way.remove(sending)
                else:
                    gateways.go_on(sending, is_known=act == "go on")
        gateways.under_way.clear()  # all gateways die
        gateways.restart()
        had_receipt = [answer for _, answer in gateways.told if b"receipt of" in answer]
        if gateways.basket.accepted is not None:
            for _ in range(2):
                answer = gateways.whole(gateways.basket.accepted).answer
                assert isinstance(answer, Accepted), "a site that asks again is told that it is counted"
            if had_receipt:
                assert gateways.told[-1][1] == had_receipt[0], "with the receipt that there was"
        for body in ("other", "bad", "copy"):
            gateways.whole(body)  # `tell` looks at what it is told
        gateways.register.close()


def test_the_receipt_that_one_gateway_has_is_told_by_the_other(tmp_path: Path) -> None:
    """Two gateways have one upload at a time; the slower one is told that it was accepted before."""
    gateways = Gateways(tmp_path)
    first, second = gateways.send("body"), gateways.send("body")
    for sending in (first, second, first, second):
        gateways.go_on(sending)
    assert [told for _, told in gateways.told] == [gateways.told[0][1]] * 2
    assert b"receipt of body" in gateways.told[0][1]
    assert second.claim.kind is ClaimKind.AGAIN
    gateways.register.close()
