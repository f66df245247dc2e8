"""Output that a reader may stop reading."""

from __future__ import annotations

from rich.console import Console


class Page(Console):
    """A console for what may be piped into ``head``: a reader that has enough ends it as it ends a print."""

    def on_broken_pipe(self) -> None:
        """Tell the caller, as a plain print does; rich would leave with exit code 1."""
        raise BrokenPipeError


__all__ = ["Page"]
