"""What the command's exit status says."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Done, failed, bad usage or config, or the privacy budget was spent before the end."""

    DONE = 0
    FAILED = 1
    BAD_USAGE = 2
    BUDGET_SPENT = 3
