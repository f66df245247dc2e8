"""The errors and warnings of the client's half; each survives pickling.

::

    ScarcityError
    ├── UsageError          a call that its caller can mend
    │   └── TooFewPersons   a client with fewer persons than the federation takes
    ├── AnswerRefused       an answer that does not fit what was sent
    ├── SiteLedgerRefused   a site's own ledger that cannot be used: nothing may be sent
    ├── MessageRefused      bytes that are no message of ours (torn, foreign or newer)
    ├── GatewayRefused      a gateway refuses a request for good
    ├── GatewayUnreachable  no gateway can be reached, or another than the kit names
    └── ModelRefused        a model that the codec cannot carry, or that is not the one due

    ScarcityWarning (a UserWarning)
    └── ModelWarning        a model that is carried, but not as its owner may believe
"""

from __future__ import annotations

import reprlib

MOST_SHOWN = 80
"""Characters of a refused value that an error repeats."""


class ScarcityError(Exception):
    """Root of all errors that this package raises on purpose."""


class UsageError(ScarcityError, ValueError):
    """A call that its caller can mend; the message says how."""


class TooFewPersons(UsageError):
    """A client has fewer persons (records) than ``privacy.min_persons``: its training is refused."""


class AnswerRefused(ScarcityError):
    """A gateway's answer does not fit what was sent: forged on the way, or a fault; the update is kept."""


class SiteLedgerRefused(ScarcityError):
    """A site's own ledger cannot be used: damaged, cut, another one's, or the disk fails; nothing is sent."""


class MessageRefused(ScarcityError, ValueError):
    """Bytes that are not a signed message of ours.

    Attributes:
        flaw: ``torn``, ``foreign`` or ``newer``.
        detail: What is wrong, as a sentence about the message.
    """

    def __init__(self, flaw: str, detail: str) -> None:
        super().__init__(flaw, detail)
        self.flaw = flaw
        self.detail = detail

    def __str__(self) -> str:
        return f"the message is {self.flaw}: {self.detail}"


class ModelRefused(ScarcityError, ValueError):
    """A model that a codec cannot carry, or that differs from the one the codec was made of.

    Attributes:
        part: The name of the parameter or buffer, such as ``conv1.weight``.
        flaw: ``unsupported``, ``different`` (structure, shape or kind of number) or ``not_finite``.
        detail: What is wrong and what to do, as a sentence about the part.
    """

    def __init__(self, part: str, flaw: str, detail: str) -> None:
        super().__init__(part, flaw, detail)
        self.part = part
        self.flaw = flaw
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.part}: {self.detail}"


class ScarcityWarning(UserWarning):
    """Root of this package's warnings: something works, but not as its user may believe."""


class ModelWarning(ScarcityWarning):
    """A part of the model is carried, but not as its owner may believe."""


class _ShortRepr(reprlib.Repr):
    def repr_int(self, number: int, level: int) -> str:
        bits = number.bit_length()
        return repr(number) if bits <= 4 * MOST_SHOWN else f"an integer of {bits} bits"


_SHORT = _ShortRepr()
_SHORT.maxlevel = 4
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = _SHORT.maxdict = 8
_SHORT.maxstring = _SHORT.maxother = 2 * MOST_SHOWN


def shown(value: object) -> str:
    """A refused value as an error repeats it, cut short however large, nested or odd it is.

    >>> shown("x" * 1000) == "'" + 76 * "x" + "..."
    True
    >>> shown(10**5000)
    'an integer of 16610 bits'
    """
    try:
        text = _SHORT.repr(value)
    except Exception:
        return f"something of type {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."
