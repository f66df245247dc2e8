"""The release of this package, which a federation's actors and drivers must share."""

__version__ = "0.1.0"
