"""A site's side of a served federation: it waits for a round, trains, sends, and goes on.

What the site has not had acknowledged lies in its folder, signed, so that the same bytes are sent again
after a crash; the gateway answers them as it did, or for the first time. A row is trained anew only if it had
not been kept. With a policy the site keeps its own ledger (`SiteLedger`): a row is charged there before it
leaves, and none leaves beyond the ceiling.

Guarantees:
    an_update_is_sent_again_byte_by_byte: After a lost answer and after a crash.
    after_a_crash_the_kept_update_is_sent_and_nothing_is_trained_anew
    nothing_unnoised_is_sent_where_the_site_says_so
    noise_that_hides_less_than_it_says_is_refused: For a smaller clip norm, another unit or accounting.
    nothing_is_sent_beyond_the_ceiling
    rows_are_noised_and_charged_at_the_site: No metrics leave it then.
    another_federation_is_refused
    a_certificate_is_renewed_before_it_expires
    a_server_that_has_stopped_is_waited_for
    the_last_model_is_kept_as_a_file
    a_forged_acknowledgement_is_not_believed: Its update is kept, and sent again.
    a_forged_round_is_not_trained_in: Where the kit names the federation's answer key.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from scarcity_ray_client.accounting.modes import Accounting
from scarcity_ray_client.connection import GatewayConnection, GatewayRefused, GatewayUnreachable, Waits
from scarcity_ray_client.errors import AnswerRefused, MessageRefused, SiteLedgerRefused, UsageError
from scarcity_ray_client.identity import IdentityKeyPair
from scarcity_ray_client.models import FloatVector, save_model
from scarcity_ray_client.policy import Policy
from scarcity_ray_client.site_file import SiteFile
from scarcity_ray_client.site_home import SiteHome, write_whole
from scarcity_ray_client.site_ledger import Extension, SiteLedger
from scarcity_ray_client.site_noise import SiteNoise
from scarcity_ray_client.training import Cause, Noising, Refusal, Update, evaluate_client, train_clients
from scarcity_ray_client.updates import sign_update
from scarcity_ray_client.wire import (
    CertificateAnswer,
    CertificateRequest,
    EnrolAnswer,
    EnrolRequest,
    ErrorAnswer,
    ErrorCode,
    EvaluationRequest,
    KeyRequest,
    MeAnswer,
    ModelFacts,
    RoundAnswer,
    RoundState,
    SignedRequest,
    UpdateAnswer,
    UpdateHeader,
    digest_of,
    read_update_body,
    update_body,
)

POLL_SECONDS = 25.0
"""That one request for a round waits at the gateway: proxies cut what is silent for a minute."""
RENEWED_BEFORE = 1.0 / 3.0
"""Of a certificate's life, what is left when it is renewed."""
LAST_MODEL_SECONDS = 20.0
MOST_MISFITS = 3
"""Times that an update is sent whose acknowledgement does not fit it, before that is an error."""
SEQUENCE = 0
"""A site sends one update a round."""
_OVER = {
    ErrorCode.REFUSED,
    ErrorCode.ROUND_OVER,
    ErrorCode.SLOT_TAKEN,
    ErrorCode.TOO_BIG,
    ErrorCode.MALFORMED,
}
"""What ends an update, not the site."""


class Ending(StrEnum):
    """Why a site has no more to do."""

    FINISHED = "finished"
    AT_CEILING = "at_ceiling"


@dataclass(frozen=True)
class Event:
    """What a site tells its user, as a line or as its parts.

    Attributes:
        kind: A word to go by.
        text: A sentence.
        facts: Numbers and texts by name.
    """

    kind: str
    text: str
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class _LedgerOutbox:
    """The site's ledger, in one run of the federation."""

    ledger: SiteLedger
    run: str

    def send(
        self, client_id: str, round_id: int, mu: float, make: Callable[[], FloatVector]
    ) -> FloatVector | Refusal:
        return self.ledger.send(client_id, round_id, mu, make, self.run)


class FederationClient:
    """One site's driver; for one thread.

    Args:
        home: The site's folder; the caller closes it.
        waits: How long requests are repeated.
        tell: Hears what happens.
        clock: Unix seconds.
        environ: Where a proxy is named.
    """

    def __init__(
        self,
        home: SiteHome,
        *,
        waits: Waits | None = None,
        tell: Callable[[Event], None] = lambda event: None,
        clock: Callable[[], float] = time.time,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.home = home
        self._waits, self._tell, self._clock, self._environ = waits, tell, clock, environ
        self._open: GatewayConnection | None = None
        self._told: set[str] = set()
        self._waiting_for = ""

    def enrol(self, site: SiteFile | None = None) -> None:
        """Have the site's keys, which are made here, known to the federation; once, again changes nothing.

        Args:
            site: Whose number of examples and policy are stated; None: neither is.

        Raises:
            GatewayRefused: If the token was used, is expired, or is another site's.
        """
        home, kit = self.home, self.home.kit
        if home.is_enrolled:
            return
        if not kit.token:
            raise UsageError(f"{home.folder}: there is no token to enrol with; give the kit")
        identity = home.identity()
        policy = None
        if site is not None and site.policy is not None:
            policy = site.policy.signed(identity).to_text()
        examples = None if site is None else site.num_examples
        asked = EnrolRequest.signed(identity, kit.token, kit.client_id, home.csr(), examples, policy)
        unsigned = GatewayConnection(
            kit.gateway, kit.authority, None, None, self._waits, self._environ, self._answer_key
        )
        try:
            said = EnrolAnswer.from_json(unsigned.ask("POST", "/v1/enrol", asked.to_json()).body)
        finally:
            unsigned.close()
        home.note_federation(said.federation_id)
        home.take_certificate(said.certificate)
        until = time.strftime("%Y-%m-%d", time.gmtime(home.certificate_life[1]))
        text = (
            f"enrolled as {kit.client_id} in domain {said.domain_id}; the certificate is good until {until}"
        )
        self._say("enrolled", text, client_id=kit.client_id, until=until)

    def round(self, after: int | None = None, wait_seconds: float = POLL_SECONDS) -> RoundAnswer:
        """The round, once there is another than `after`, or what stands after `wait_seconds`."""
        query = f"wait_seconds={wait_seconds:g}" + ("" if after is None else f"&after={after}")
        asked = self._gateway.ask("GET", f"/v1/round?{query}", timeout_seconds=wait_seconds + 35.0)
        answer = RoundAnswer.from_json(asked.body)
        if answer.scope.federation_id != self.home.kit.federation_id:
            raise UsageError(
                f"the gateway serves federation {answer.scope.federation_id!r}, and this site is enrolled "
                f"with {self.home.kit.federation_id!r}"
            )
        return answer

    def model(self, facts: ModelFacts) -> FloatVector:
        """The model (d,) of a round; fetched once, checked by its digest."""
        folder = self.home.folder / "model"
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{facts.sha256}.f32"
        if not path.exists():
            for old in folder.iterdir():
                if old.name != f"{facts.sha256}.part":
                    old.unlink()
            self._gateway.download("/v1/model", facts.sha256, path, facts.num_bytes)
        data = path.read_bytes()
        if digest_of(data) != facts.sha256 or len(data) != facts.num_bytes:
            path.unlink()
            raise UsageError(f"{path}: the model was changed on the disk, and is removed; try again")
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)

    def evaluate(self, round_id: int, metrics: Mapping[str, float], num_examples: int) -> None:
        """Tell the site's metrics of a round's model: outside the privacy claim."""
        body = EvaluationRequest(metrics, num_examples).to_json()
        self._gateway.ask("PUT", f"/v1/evaluations/{round_id}", body)

    def me(self) -> MeAnswer:
        """What the federation knows of this site."""
        return MeAnswer.from_json(self._gateway.ask("GET", "/v1/me").body)

    def submit(
        self,
        answer: RoundAnswer,
        row: FloatVector,
        num_examples: int,
        meta: Mapping[str, float] | None = None,
        metrics: Mapping[str, float] | None = None,
        site_ledger: Extension | None = None,
    ) -> UpdateAnswer | ErrorAnswer:
        """Sign an update for a round, keep it, and send it till it is acknowledged or refused for good.

        Args:
            answer: The round.
            row: (d,) as it is aggregated.
            num_examples: Behind it; persons (records) where they are the unit.
            meta: Values of meta-parameters.
            metrics: Of the training, outside the privacy claim.
            site_ledger: What the site's ledger tells.
        """
        identity, client_id = self.home.identity(), self.home.kit.client_id
        signature = sign_update(
            identity.sign,
            answer.scope,
            client_id,
            answer.round_id,
            row,
            sequence=SEQUENCE,
            num_examples=num_examples,
            meta=meta,
        )
        header = UpdateHeader(
            client_id, answer.round_id, SEQUENCE, num_examples, meta, signature, metrics or {}, site_ledger
        )
        folder = self.home.folder / "outbox"
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{answer.scope.run}-{answer.round_id}.update"
        write_whole(path, update_body(header, row))
        self._note_progress(str(answer.scope.run), answer.round_id)
        return self._deliver(path)

    def deliver(self) -> None:
        """Send what lies in the outbox: an update that was not acknowledged when the site stopped."""
        folder = self.home.folder / "outbox"
        for path in sorted(folder.glob("*.update")) if folder.exists() else ():
            run, round_id = path.stem.split("-")
            self._note_progress(run, int(round_id))
            self._tell_fate(int(round_id), self._deliver(path))

    def renew_certificate(self) -> None:
        """Get a certificate for a new TLS key; the old one holds for the gateway's overlap."""
        asked = CertificateRequest(self.home.csr())
        reply = self._gateway.ask("POST", "/v1/certificate", asked.to_json())
        self.home.take_certificate(CertificateAnswer.from_json(reply.body).certificate)
        self.close()
        until = time.strftime("%Y-%m-%d", time.gmtime(self.home.certificate_life[1]))
        self._say("renewed", f"the certificate was renewed, until {until}", until=until)

    def change_key(self) -> None:
        """Sign with a new Ed25519 key from now on; a change that was interrupted is ended.

        The old key signs for the new one. What waits in the outbox is sent first, as the old key has signed
        it.
        """
        home, kit = self.home, self.home.kit
        self._end_key_change()
        self.deliver()
        asked = KeyRequest.signed(
            home.identity(), home.identity("identity_new"), kit.federation_id, kit.client_id
        )
        self._gateway.ask("POST", "/v1/key", asked.to_json())
        home.take_new_identity()
        self.close()
        self._say("key_changed", f"the site signs with the new key {home.identity().fingerprint}")

    def run(self, site: SiteFile) -> Ending:
        """Take part in each round, till the federation ends or the site's ceiling is reached.

        Raises:
            GatewayRefused: If the gateway takes nothing more from this site: revoked, a wrong clock.
            UsageError: If the workload and the federation do not fit together.
        """
        self.enrol(site)
        if not self._answer_key:
            self._say_once(
                "answers_not_signed",
                "this site's kit names no key that signs the gateway's answers: whoever ends TLS on the way "
                "is believed; ask the federation for a new kit (client-kit make --again)",
            )
        self._end_key_change()
        self.deliver()
        last = self._progress()
        while True:
            self._renew_in_time()
            asked = time.monotonic()
            answer = self.round(last[1] if last is not None else None)
            run = str(answer.scope.run)
            # A server that stops may name no run: only an open round tells that all was begun anew.
            if answer.state is RoundState.OPEN and last is not None and last[0] != run:
                last = None
            if answer.state is RoundState.FINISHED:
                self._say(
                    "finished", f"the federation has finished: {answer.reason or 'all rounds are done'}"
                )
                self._keep_last_model(site, answer.model)
                return Ending.FINISHED
            if answer.state is not RoundState.OPEN or (last is not None and answer.round_id <= last[1]):
                self._tell_waiting(answer)
                if time.monotonic() - asked < 1.0:
                    self._pause(1.0)
                continue
            self._waiting_for = ""
            try:
                refusal = self._take_part(site, answer)
            except GatewayRefused as refused:
                if refused.answer.code not in _OVER:
                    raise
                self._tell_fate(answer.round_id, refused.answer)
                refusal = None
                if refused.answer.code is ErrorCode.ROUND_OVER:
                    self._pause(1.0)
                    continue
            last = run, answer.round_id
            self._note_progress(*last)
            if refusal is not None and refusal.cause is Cause.AT_CEILING:
                return Ending.AT_CEILING

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def __enter__(self) -> FederationClient:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _keep_last_model(self, site: SiteFile, facts: ModelFacts | None) -> None:
        """Write the last model as a file for `load_model`; gateways end soon, so it is not tried long."""
        path = self.home.folder / "model.npz"
        if facts is None:
            return
        waits = replace(self._waits or Waits(), give_up_seconds=LAST_MODEL_SECONDS)
        self.close()
        self._open = self._connected(self.home.identity(), waits)
        try:
            save_model(path, site.codec.decode(self.model(facts)))
        except (GatewayRefused, GatewayUnreachable) as error:
            self._say("no_model", f"the last model could not be fetched, ask the federation for it: {error}")
        else:
            self._say("model", f"the last model is {path}", path=str(path), version=facts.version)

    def _take_part(self, site: SiteFile, answer: RoundAnswer) -> Refusal | None:
        self._check(site, answer)
        model, round_id, client = answer.model, answer.round_id, site.client
        if model is None:
            raise UsageError(f"round {round_id} is open, and the gateway has no model")
        if model.num_bytes != 4 * answer.vector_dim:
            raise UsageError(f"the model of {model.num_bytes} bytes is not of {answer.vector_dim} numbers")
        vector = self.model(model)
        text = f"round {round_id}: training from model {model.version}"
        self._say("training", text, round_id=round_id, version=model.version)
        if answer.asks_evaluation and answer.noise is None:
            found = evaluate_client(site.workload, site.codec, vector, client, round_id)
            if isinstance(found, Refusal):
                self._say("not_evaluated", str(found), round_id=round_id)
            elif found:
                self.evaluate(round_id, found, client.num_examples)
        if site.policy is None:
            if answer.row_mu is not None:
                self._say_once(
                    "no_policy",
                    "each update costs privacy, and the site's file has no policy: this site counts nothing "
                    "itself and has no ceiling; scarcity-ray-client status tells what is left of the "
                    "federation's budget",
                )
            return self._train_and_send(site, answer, vector, None)
        if answer.row_mu is None:
            self._check_ceiling(site.policy)
            self._say_once(
                "no_row_cost",
                "the federation states no cost of a row: this site counts nothing itself, and its ceiling is "
                "kept by the federation's ledger alone, which has the signed policy",
            )
            return self._train_and_send(site, answer, vector, None)
        with SiteLedger.open(
            self.home.folder / "ledger.sqlite",
            site.policy,
            federation_id=answer.scope.federation_id,
            accounting=answer.accounting,
            is_proof=answer.noise is not None,
        ) as ledger:
            if not ledger.heed(answer.site_ledger):
                raise SiteLedgerRefused(
                    f"{ledger.path}: the federation knows of more rows than this file holds: it is an older "
                    "copy; bring back the newest one"
                )
            refusal = self._train_and_send(site, answer, vector, ledger)
            ledger.forget_rows(round_id, str(answer.scope.run))
            return refusal

    def _train_and_send(
        self, site: SiteFile, answer: RoundAnswer, vector: FloatVector, ledger: SiteLedger | None
    ) -> Refusal | None:
        round_id, client, run = answer.round_id, site.client, str(answer.scope.run)
        noising = None
        if answer.noise is not None:
            outbox = None if ledger is None else _LedgerOutbox(ledger, run)
            noising = Noising(answer.noise, outbox=outbox)
        (outcome,) = train_clients(
            site.workload,
            site.codec,
            vector,
            [client],
            round_id,
            min_persons=answer.min_persons,
            noising=noising,
        )
        if isinstance(outcome, Update) and ledger is not None and answer.noise is None:
            # The promise under central noise: so many rows as the stated costs allow.
            update, mu = outcome, answer.row_mu or 0.0
            row = ledger.send(client.client_id, round_id, mu, lambda: update.delta, run)
            outcome = row if isinstance(row, Refusal) else replace(update, delta=row)
        if isinstance(outcome, Refusal):
            self._say("not_trained", str(outcome), round_id=round_id, cause=outcome.cause.value)
            return outcome
        self._tell_norms(outcome.delta, answer, outcome.num_persons)
        meta = None
        if answer.private_evaluation is not None:
            found = evaluate_client(site.workload, site.codec, vector, client, round_id)
            if isinstance(found, Refusal):
                self._say("not_evaluated", str(found), round_id=round_id)
            measured = {} if isinstance(found, Refusal) else found
            meta = answer.private_evaluation.report(measured, client.num_examples)
        count = outcome.num_examples
        if answer.min_persons is not None:
            count = outcome.num_persons or answer.min_persons
        told = None
        if ledger is not None and answer.noise is not None:
            told = ledger.extension(answer.site_ledger)
        said = self.submit(answer, outcome.delta, count, meta, outcome.metrics, told)
        self._tell_fate(round_id, said)
        if ledger is not None:
            spent, most = ledger.epsilon_spent, ledger.policy.lifetime_epsilon
            text = f"this site's own ledger: epsilon {spent:.4g} of {most:g} is spent"
            if not ledger.is_proof:
                text += ", if the federation noises each release as it says"
            self._say("ledger", text, epsilon_spent=spent, ceiling=most, is_proof=ledger.is_proof)
        return None

    def _check(self, site: SiteFile, answer: RoundAnswer) -> None:
        if site.codec.dimension != answer.vector_dim:
            raise UsageError(
                f"the workload's model has {site.codec.dimension} numbers, and the federation's "
                f"{answer.vector_dim}: have the site's workload be the federation's"
            )
        if site.noised_alone and answer.noise is None:
            raise UsageError(
                "the site's file says noise: site, and this federation asks for rows without noise: "
                "nothing is sent"
            )
        if answer.noise is not None:
            self._check_noise(site, answer, answer.noise)
        if site.policy is not None and site.policy.unit != answer.unit:
            raise UsageError(
                f"the policy protects each {site.policy.unit}, and this federation each {answer.unit}: "
                "write a policy for that unit"
            )

    def _check_noise(self, site: SiteFile, answer: RoundAnswer, noise: SiteNoise) -> None:
        """Noise hides a person only in a mean of contributions that are clipped to what it is made for."""
        if noise.dimension != answer.vector_dim:
            raise UsageError("the federation's noise is for another number of coordinates: nothing is sent")
        if answer.unit == "client":
            raise UsageError(
                "the federation's noise hides one person, and it says that it protects each client: "
                "nothing is sent"
            )
        if noise.is_discrete and answer.accounting is not Accounting.ZCDP:
            raise UsageError(
                "the federation's noise is discrete, and it adds costs up as if it were continuous: "
                "nothing is sent"
            )
        if answer.private_evaluation is not None:
            raise UsageError(
                "the federation asks for measurements without noise beside noised rows: nothing is sent"
            )
        clip = site.person_clip_norm
        if clip is not None and noise.clip_norm < clip:
            raise UsageError(
                f"the federation's noise is for contributions of norm {noise.clip_norm:g}, and the site's "
                f"file says person_clip_norm: {clip:g}: it would hide less than it says, and nothing is sent"
            )
        if clip is None:
            self._say_once(
                "clip_not_stated",
                f"the noise of a row hides a person whose contribution is clipped to {noise.clip_norm:g}: "
                "see that the workload clips to no more, and state person_clip_norm in the site's file",
            )

    def _check_ceiling(self, policy: Policy) -> None:
        """Where only the federation can keep the ceiling, it must have it."""
        if "no_row_cost" in self._told:
            return
        known = self.me().ceiling
        if known is None or known > policy.lifetime_epsilon:
            has = "no ceiling" if known is None else f"epsilon {known:g}"
            raise UsageError(
                f"the federation's ledger has {has} of this site, and the policy says "
                f"{policy.lifetime_epsilon:g}: enrol with it, by a kit made --again"
            )

    def _deliver(self, path: Path) -> UpdateAnswer | ErrorAnswer:
        body, (run, _, round_id) = path.read_bytes(), path.stem.partition("-")
        for attempt in range(1, MOST_MISFITS + 1):
            try:
                reply = self._gateway.upload(f"/v1/updates/{round_id}", body)
            except GatewayRefused as refused:
                if refused.answer.code not in _OVER:
                    raise
                again = self._signed_anew(path, body) if refused.answer.code is ErrorCode.REFUSED else None
                path.unlink()
                return refused.answer if again is None else self._deliver(again)
            try:
                said = UpdateAnswer.from_json(reply.body)
                fault = said.fault(body, self.home.kit.federation_id, int(run))
            except MessageRefused as error:
                fault = str(error)
            if not fault:
                break
            if attempt == MOST_MISFITS:
                raise AnswerRefused(
                    f"round {round_id}: an answer says that the update was accepted, and does not fit it: "
                    f"{fault}. Whoever ends TLS on the way may have forged it. The update is kept, and sent "
                    "again at the next start"
                )
            self._pause(1.0)
        receipts = self.home.folder / "receipts"
        receipts.mkdir(mode=0o700, exist_ok=True)
        write_whole(receipts / f"{path.stem}.json", reply.body)
        if said.receipt is not None:
            write_whole(receipts / f"{path.stem}.receipt", said.receipt.encode())
        path.unlink()
        return said

    def _signed_anew(self, path: Path, body: bytes) -> Path | None:
        """The same row, signed for the run of now, if the server was started again in the update's round.

        A signature is good in one run alone. The round must be the same one, with the model that this site
        has: a refused row is in no basket, so it can count once at most, and no noise is drawn anew.
        """
        run, _, round_id = path.stem.partition("-")
        answer = self.round(wait_seconds=0.0)
        is_same = answer.state is RoundState.OPEN and answer.round_id == int(round_id)
        if not is_same or str(answer.scope.run) == run or answer.model is None:
            return None
        if not (self.home.folder / "model" / f"{answer.model.sha256}.f32").exists():
            return None
        try:
            header, row = read_update_body(body, answer.vector_dim)
        except MessageRefused:
            return None
        signature = self.home.identity().sign(header.statement(answer.scope, row).encode())
        anew = path.with_name(f"{answer.scope.run}-{round_id}.update")
        write_whole(anew, update_body(replace(header, signature=signature), row))
        self._note_progress(str(answer.scope.run), answer.round_id)
        return anew

    @property
    def _answer_key(self) -> bytes:
        return bytes.fromhex(self.home.kit.answer_key)

    @property
    def _gateway(self) -> GatewayConnection:
        if self._open is None:
            self._open = self._connected(self.home.identity())
        return self._open

    def _connected(self, identity: IdentityKeyPair, waits: Waits | None = None) -> GatewayConnection:
        home, kit = self.home, self.home.kit
        if not home.is_enrolled:
            raise UsageError(f"{home.folder}: this site has not enrolled yet")
        expires = home.certificate_life[1]
        if self._clock() >= expires:
            date = time.strftime("%Y-%m-%d", time.gmtime(expires))
            raise UsageError(
                f"{home.folder}: by this machine's clock the certificate expired on {date}: set the clock, "
                "or ask the federation for a new kit"
            )

        def sign(method: str, target: str, body_digest: str) -> tuple[Mapping[str, str], str]:
            signed = SignedRequest.signed(
                identity, kit.federation_id, method, target, kit.client_id, self._clock(), body_digest
            )
            return signed.headers(), signed.occasion(kit.federation_id, method, target)

        waits = waits or self._waits
        return GatewayConnection(
            kit.gateway, kit.authority, home.chain, sign, waits, self._environ, self._answer_key
        )

    def _end_key_change(self) -> None:
        """Find out which key holds, if an answer was lost."""
        if not self.home.has_new_identity():
            return
        with_new = self._connected(self.home.identity("identity_new"))
        try:
            with_new.ask("GET", "/v1/me")
        except GatewayRefused as refused:
            if refused.answer.code is not ErrorCode.WRONG_SIGNATURE:
                raise
            return
        finally:
            with_new.close()
        self.home.take_new_identity()
        self.close()

    def _renew_in_time(self) -> None:
        begins, expires = self.home.certificate_life
        if self._clock() < expires - RENEWED_BEFORE * (expires - begins):
            return
        try:
            self.renew_certificate()
        except GatewayRefused as refused:
            if self._clock() >= expires or refused.answer.code in (ErrorCode.REVOKED, ErrorCode.CLOCK):
                raise
            days = (expires - self._clock()) / 86400.0
            text = f"the certificate, good for {days:.0f} days more, could not be renewed: {refused}"
            self._say_once("not_renewed", text)

    def _progress(self) -> tuple[str, int] | None:
        try:
            content = json.loads((self.home.folder / "progress.json").read_bytes())
            return str(content["run"]), int(content["round_id"])
        except FileNotFoundError:
            return None
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise UsageError(f"{self.home.folder / 'progress.json'}: it cannot be read: {error}") from None

    def _note_progress(self, run: str, round_id: int) -> None:
        content = json.dumps({"run": run, "round_id": round_id}).encode()
        write_whole(self.home.folder / "progress.json", content)

    def _tell_fate(self, round_id: int, said: UpdateAnswer | ErrorAnswer) -> None:
        if isinstance(said, ErrorAnswer):
            text = f"round {round_id}: the update was not counted: {said.message}"
            self._say("refused", text, round_id=round_id, code=said.code.value)
        else:
            kept = "" if said.receipt is None else "; its receipt is kept"
            text = f"round {round_id}: the update was accepted by basket {said.basket_id}{kept}"
            self._say("accepted", text, round_id=round_id, basket_id=said.basket_id)

    def _tell_norms(self, row: FloatVector, answer: RoundAnswer, num_persons: int | None) -> None:
        """Say where a row counts for less than its sender may believe."""
        norm = float(np.linalg.norm(row.astype(np.float64)))
        if answer.noise is None:
            if answer.clip_norm is not None and norm > answer.clip_norm:
                text = f"this update's norm is {norm:.3g}, and it is clipped to {answer.clip_norm:.3g}"
                self._say("clipped", text, round_id=answer.round_id, norm=norm)
            return
        sigma = answer.noise.sigma(num_persons or answer.noise.min_persons)
        noise = sigma * math.sqrt(answer.noise.dimension)
        if noise > answer.noise.clip_norm:
            self._say_once(
                "noise_above_signal",
                f"the noise of one row has norm {noise:.3g}, and what it hides {answer.noise.clip_norm:.3g} "
                "at most: only the mean over many sites and rounds tells anything",
            )

    def _tell_waiting(self, answer: RoundAnswer) -> None:
        text = f"{answer.state}: {answer.reason or 'for the next round'}"
        if text != self._waiting_for:
            self._waiting_for = text
            self._say("waiting", text, round_id=answer.round_id)

    def _say(self, kind: str, text: str, **facts: object) -> None:
        self._tell(Event(kind, text, facts))

    def _say_once(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._say(kind, text)

    def _pause(self, seconds: float) -> None:
        (self._waits or Waits()).sleep(seconds)


__all__ = ["Ending", "Event", "FederationClient"]
