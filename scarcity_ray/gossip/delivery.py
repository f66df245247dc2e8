"""Delivery of messages by push and pull, with counts of what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from scarcity_ray.gossip.client_state import GossipState
from scarcity_ray.gossip.message import GossipMessage
from scarcity_ray.gossip.peers import PeerSampler


class Inboxes:
    """One inbox for each member of a basket.

    A message waits in its inbox until its receiver has a local state to mix it into (delivered), it is too
    old (expired), or its sender or receiver leaves or its sender sends a newer one (dropped).

    Guarantees:
        sent = delivered + expired + dropped + pending, always.
        A receiver is never delivered two messages of one sender at once: the newest counts.
    """

    def __init__(self) -> None:
        self.sent = self.delivered = self.expired = self.dropped = 0
        self._waiting: dict[str, dict[str, GossipMessage]] = {}

    def put(self, receiver_id: str, message: GossipMessage) -> None:
        """Send one message to one receiver."""
        self.sent += 1
        inbox = self._waiting.setdefault(receiver_id, {})
        earlier = inbox.pop(message.sender_id, message)
        self.dropped += earlier is not message
        inbox[message.sender_id] = max(earlier, message, key=lambda m: m.sequence_number)

    def is_empty(self, receiver_id: str) -> bool:
        """Whether nothing waits for a receiver."""
        return receiver_id not in self._waiting

    def collect(self, receiver_id: str) -> list[GossipMessage]:
        """Deliver what waits for a receiver, in order of arrival."""
        messages = list(self._waiting.pop(receiver_id, {}).values())
        self.delivered += len(messages)
        return messages

    def expire(self, ttl: float, now: float) -> int:
        """Remove what is older than `ttl` seconds; return how many messages that were."""
        count = self._filter(lambda _, message: not message.is_expired(ttl, now))
        self.expired += count
        return count

    def drop(self, client_id: str) -> int:
        """Remove all messages to and from a client; return how many they were."""
        count = self._filter(lambda receiver, message: client_id not in (receiver, message.sender_id))
        self.dropped += count
        return count

    def keep_only(self, members: Iterable[str]) -> int:
        """Remove all messages to or from others than `members`; return how many they were."""
        known = set(members)
        count = self._filter(lambda receiver, message: receiver in known and message.sender_id in known)
        self.dropped += count
        return count

    def waiting(self) -> dict[str, tuple[GossipMessage, ...]]:
        """What waits, by receiver, in order of arrival."""
        return {receiver: tuple(inbox.values()) for receiver, inbox in self._waiting.items()}

    def wait(self, messages: Mapping[str, Iterable[GossipMessage]]) -> None:
        """Have these messages wait, as `waiting` gave them; they are counted already."""
        self._waiting = {receiver: {m.sender_id: m for m in inbox} for receiver, inbox in messages.items()}

    def pending(self) -> int:
        """Messages that wait."""
        return sum(map(len, self._waiting.values()))

    def _filter(self, keep: Callable[[str, GossipMessage], bool]) -> int:
        before = self.pending()
        kept = {r: {s: m for s, m in inbox.items() if keep(r, m)} for r, inbox in self._waiting.items()}
        self._waiting = {receiver: inbox for receiver, inbox in kept.items() if inbox}
        return before - self.pending()


class Delivery:
    """Carries the released vectors of one gossip round to peers.

    Guarantees:
        a_client_receives_a_released_vector_at_most_once

    Args:
        peers_per_round: K.
        pull_interval: Seconds between two pulls of a client.
    """

    def __init__(self, sampler: PeerSampler, peers_per_round: int, pull_interval: float) -> None:
        self.inboxes = Inboxes()
        self.pulls = 0
        self._sampler = sampler
        self._peers_per_round = peers_per_round
        self._pull_interval = pull_interval

    @property
    def round(self) -> int:
        """Of the peers' rotation."""
        return self._sampler.round

    @round.setter
    def round(self, number: int) -> None:
        self._sampler.round = number

    def run(
        self,
        live: Mapping[str, GossipMessage],
        clients: Mapping[str, GossipState],
        members: Sequence[str],
        receivers: Sequence[str],
        now: float,
    ) -> None:
        """Push every vector to K members; then receivers with an empty inbox pull.

        Args:
            live: The federation round's released vectors, by sender.
            clients: The gossip states of all senders and receivers.
            members: All members of the basket, sorted.
            receivers: Those with a local state, who may pull.
        """
        for row, sender in zip(
            self._sampler.sample_all(members, self._peers_per_round), members, strict=True
        ):
            for peer in row if sender in live else ():
                self._send(live[sender], clients[sender], members[peer])
        for client_id in receivers:
            self._pull(client_id, live, clients, now)
        self._sampler.advance_round()

    def _pull(
        self,
        client_id: str,
        live: Mapping[str, GossipMessage],
        clients: Mapping[str, GossipState],
        now: float,
    ) -> None:
        last = clients[client_id].last_pull
        is_early = last is not None and abs(now - last) < self._pull_interval
        if is_early or not self.inboxes.is_empty(client_id):
            return
        fresh = [s for s in live if s != client_id and client_id not in clients[s].recipients]
        if fresh:
            clients[client_id].last_pull = now
            self.pulls += 1
        for sender in sorted(self._sampler.sample(fresh, self._peers_per_round, exclude=client_id)):
            self._send(live[sender], clients[sender], client_id)

    def _send(self, message: GossipMessage, sender: GossipState, receiver_id: str) -> None:
        if receiver_id not in sender.recipients:
            sender.recipients.add(receiver_id)
            self.inboxes.put(receiver_id, message)
