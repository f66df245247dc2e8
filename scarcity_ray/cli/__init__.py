"""The ``scarcity-ray`` command."""
