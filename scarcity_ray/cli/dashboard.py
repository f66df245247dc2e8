"""``scarcity-ray dashboard``: the Grafana dashboard, to import or to lay beside Ray's own."""

from __future__ import annotations

import json

import click

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.monitoring.dashboard import ROWS
from scarcity_ray.monitoring.metrics import ROUND


def dashboard_command() -> ExitCode:
    """Print the dashboard's JSON."""
    from scarcity_ray.runtime.ray_dashboard import grafana_dashboard

    variable = f'label_values({{__name__=~"(ray_)?{ROUND.name}"}}, federation)'
    click.echo(json.dumps(grafana_dashboard("Federations (scarcity_ray)", ROWS, variable), indent=2))
    return ExitCode.DONE
