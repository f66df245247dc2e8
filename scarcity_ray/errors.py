"""The tree of errors; each of them survives pickling across actors.

The roots and the errors of the client's half are defined in `scarcity_ray_client.errors`.

::

    ScarcityError
    ├── ConfigError               a configuration that cannot work (path, value, what is accepted)
    │   └── ConfigFileError       ... because its file cannot be read as one
    ├── UsageError                a call that its caller can mend
    ├── TooFewUpdates             a robust rule was given fewer rows than it needs
    ├── RuleFailed                a rule from outside raised, hung, or gave no finite vector
    ├── PrivacyBudgetExhausted    a charge does not fit into the budget (only with ``strict=True``)
    ├── LedgerError               the ledger cannot be used
    │   ├── LedgerCorrupted       ... because its contents were changed or torn
    │   │   └── LedgerRolledBack  ... because it lacks what it is known to have held
    │   ├── LedgerMissing         ... because it should be there and is not
    │   ├── LedgerHeld            ... because a living accountant holds it
    │   └── LedgerTakenOver       ... because another accountant has taken it over
    ├── StorageError              a snapshot or a journal cannot be used (its path, and the remedy)
    ├── SecureAggregationAborted  a session of secure aggregation ended without a result
    ├── ProtocolViolation         a peer sent something that the protocol forbids
    ├── MessageRefused            bytes that are no message of ours (torn, foreign or newer)
    ├── RuleFaulty                a rule from outside fails a check of `scarcity_ray.testing`
    └── ActorLost                 a role's process died (``retryable`` says whether to call again)

Ordinary refusals (a stale update, a replay) are return values, not errors. What works, but not as its user
may believe, is a warning, given once by each federation::

    ScarcityWarning (a UserWarning)
    ├── NoiseWarning      noise is as large as what it hides, or larger
    ├── PrivacyWarning    a setting promises little
    ├── ClippingWarning   nearly all updates are longer than the clip norm
    ├── ConfigWarning     a key of a configuration by its old name, which a later release refuses
    ├── LedgerWarning     nobody chose a place for the ledger, and what follows for the budget
    └── FaultWarning      a role died and came back, or a rule from outside fails; the text says what to do
"""

from __future__ import annotations

import sys
import warnings

from scarcity_ray_client.errors import MessageRefused as MessageRefused
from scarcity_ray_client.errors import ScarcityError as ScarcityError
from scarcity_ray_client.errors import ScarcityWarning as ScarcityWarning
from scarcity_ray_client.errors import UsageError as UsageError

_PACKAGE = f"{__name__.partition('.')[0]}."


class ConfigError(ScarcityError, ValueError):
    """A configuration value that cannot work.

    Attributes:
        path: Where it stands, e.g. ``layer1.byzantine_fraction``.
        value: What was given.
        accepted: What would be accepted, as a sentence.
    """

    def __init__(self, path: str, value: object, accepted: str) -> None:
        super().__init__(path, value, accepted)
        self.path = path
        self.value = value
        self.accepted = accepted

    def __str__(self) -> str:
        return f"{self.path}: {self.value!r} is not accepted; {self.accepted}"

    def under(self, section: str) -> ConfigError:
        """The same of a value that stands in a section of a larger configuration."""
        return ConfigError(".".join(filter(None, (section, self.path))), self.value, self.accepted)


class ConfigFileError(ConfigError):
    """A file that cannot be read as a configuration: `value` says why, `accepted` what would be one."""

    def __str__(self) -> str:
        return f"{self.path}: {self.value}; give {self.accepted}"


class TooFewUpdates(ScarcityError, ValueError):
    """A robust rule was given fewer rows than it needs to keep its promise.

    Attributes:
        rule: The rule's name.
        rows: Rows given.
        least: Rows needed.
    """

    def __init__(self, rule: str, rows: int, least: int) -> None:
        super().__init__(rule, rows, least)
        self.rule = rule
        self.rows = rows
        self.least = least

    def __str__(self) -> str:
        return f"{self.rule} needs at least {self.least} finite rows, got {self.rows}"


class RuleFailed(ScarcityError):
    """A rule from outside, or a GPU, gave no result; the basket waits and keeps its updates.

    Attributes:
        rule: Its name or import path.
        why: What it did, as a sentence.
        detail: What it said itself, which may hold private values.
    """

    def __init__(self, rule: str, why: str, detail: str = "") -> None:
        super().__init__(rule, why, detail)
        self.rule = rule
        self.why = why
        self.detail = detail

    def __str__(self) -> str:
        return f"rule {self.rule}: {self.why}{f': {self.detail}' if self.detail else ''}"


class PrivacyBudgetExhausted(ScarcityError):
    """The next charge does not fit into the privacy budget."""


class StorageError(ScarcityError):
    """A snapshot or a journal cannot be written or read; the text names its path and the remedy."""


class LedgerError(ScarcityError):
    """The ledger cannot be used."""


class LedgerCorrupted(LedgerError):
    """The ledger's contents were changed, torn or reordered."""


class LedgerRolledBack(LedgerCorrupted):
    """The ledger lacks rows that it is known to have held: an older copy would grant again what is spent."""


class LedgerMissing(LedgerError):
    """A ledger that should exist does not; a fresh budget is never started in its place."""


class LedgerHeld(LedgerError):
    """A living accountant holds the ledger; taking it over is an explicit act."""


class LedgerTakenOver(LedgerError):
    """Another accountant has taken the ledger over; this one charges nothing any more."""


class SecureAggregationAborted(ScarcityError):
    """A session of secure aggregation ended without a result; nothing was released.

    Attributes:
        reason: Why, as a short sentence.
        retryable: True while no unmask share was asked for, so that the inputs may be used again.
    """

    def __init__(self, reason: str, retryable: bool = True) -> None:
        super().__init__(reason, retryable)
        self.reason = reason
        self.retryable = retryable

    def __str__(self) -> str:
        return self.reason


class ProtocolViolation(ScarcityError):
    """A peer sent a message that the protocol forbids; it is refused, and nothing else changes."""


class ActorLost(ScarcityError):
    """The process of a role died, or cannot be reached.

    Attributes:
        role: The role's name, e.g. ``basket:0`` or ``accountant``.
        detail: What is known about it.
        retryable: Whether the same call may be made again once the role is back.
    """

    def __init__(self, role: str, detail: str = "", retryable: bool = True) -> None:
        super().__init__(role, detail, retryable)
        self.role = role
        self.detail = detail
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.role} was lost{': ' + self.detail if self.detail else ''}"


class NoiseWarning(ScarcityWarning):
    """Noise is as large as what it hides, or larger."""


class PrivacyWarning(ScarcityWarning):
    """A setting promises little."""


class ClippingWarning(ScarcityWarning):
    """Nearly all updates are longer than the clip norm."""


class ConfigWarning(ScarcityWarning):
    """A key of a configuration by its old name, which a later release refuses."""


class LedgerWarning(ScarcityWarning):
    """A ledger that nobody chose a place for, and what follows from it for the budget."""


class FaultWarning(ScarcityWarning):
    """A role died and came back, or a rule from outside failed; the text says what was lost, what to do."""


def warn_caller(message: str, category: type[ScarcityWarning]) -> None:
    """Warn, in the name of the line outside this package that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and f"{frame.f_globals.get('__name__')}.".startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
