"""A Grafana dashboard in the format of Ray's own, so that it stands beside them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import count
from typing import Any

from ray.dashboard.modules.metrics.dashboards.common import PanelTemplate, TargetTemplate

from scarcity_ray.runtime.samples import PanelSpec

UID = "scarcityRayDashboard"
WIDTH, HEIGHT, COLUMNS = 12, 8, 2


def grafana_dashboard(
    title: str, rows: Sequence[tuple[str, Sequence[PanelSpec]]], variable: str
) -> dict[str, Any]:
    """The dashboard as JSON has it.

    Args:
        rows: Panels under a title each.
        variable: A query whose values the reader can choose ``$federation`` from.
    """
    panels: list[dict[str, Any]] = []
    numbers, y = count(1), 0
    for name, specs in rows:
        place = {"h": 1, "w": WIDTH * COLUMNS, "x": 0, "y": y}
        row = {"type": "row", "title": name, "id": next(numbers), "collapsed": False, "panels": []}
        panels.append({**row, "gridPos": place})
        y += 1
        for index, spec in enumerate(specs):
            across, down = index % COLUMNS, index // COLUMNS
            place = {"h": HEIGHT, "w": WIDTH, "x": WIDTH * across, "y": y + HEIGHT * down}
            panels.append(_panel(spec, next(numbers), place))
        y += HEIGHT * -(-len(specs) // COLUMNS)
    return {
        "title": title,
        "uid": UID,
        "version": 1,
        "schemaVersion": 27,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "tags": ["scarcity_ray"],
        "time": {"from": "now-3h", "to": "now"},
        "annotations": {"list": []},
        "panels": panels,
        "templating": {"list": [_DATASOURCE, _chosen("federation", variable)]},
    }


def _panel(spec: PanelSpec, number: int, place: dict[str, int]) -> dict[str, Any]:
    panel: dict[str, Any] = copy.deepcopy(PanelTemplate.GRAPH.value)
    panel["title"], panel["description"], panel["id"] = spec.title, spec.description, number
    panel["gridPos"] = place
    panel["fieldConfig"]["defaults"]["unit"] = panel["yaxes"][0]["format"] = spec.unit
    panel["fill"], panel["stack"] = 0, False
    panel["targets"] = [
        {
            **copy.deepcopy(TargetTemplate.GRAPH.value),
            "expr": query.expr,
            "legendFormat": query.legend,
            "refId": chr(ord("A") + index),
        }
        for index, query in enumerate(spec.queries)
    ]
    return panel


_DATASOURCE = {
    "name": "datasource",
    "type": "datasource",
    "description": "The Prometheus that scrapes Ray or a gateway.",
    "query": "prometheus",
    "refresh": 1,
    "hide": 2,
    "includeAll": False,
    "multi": False,
    "current": {"selected": False},
}


def _chosen(name: str, variable: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": "${datasource}",
        "definition": variable,
        "query": {"query": variable, "refId": "StandardVariableQuery"},
        "refresh": 2,
        "hide": 0,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "sort": 1,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


__all__ = ["grafana_dashboard"]
